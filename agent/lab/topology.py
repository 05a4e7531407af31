"""Machines on one wire, and workloads with a network namespace of their own behind a machine.

                      wire (a bridge in a namespace of its own; the sniffer listens here)
          ____________________|______________________
         |                    |                      |
    machine 1            machine 2               machine 3 ...        10.77.0.N      fd77::N
     |      |                 |
    pod    pod               pod                                      10.77.N.10..   fd77:0:0:N::10..

Machines route for their pods, as container hosts do. The addresses exist only inside the namespaces, so that any
number of labs can run side by side.
"""

import ipaddress
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pyroute2.iproute import IPRoute

from agent.lab.namespace import Namespace

PREFIX_4, PREFIX_6 = "10.77", "fd77:0:0"


@dataclass(frozen=True, slots=True)
class Host:
    """A machine or a pod: a namespace with one address of each family."""

    namespace: Namespace
    address: str
    address6: str


@dataclass(frozen=True, slots=True)
class Machine(Host):
    """A host on the wire. `port` is its interface at the wire's end."""

    number: int
    port: str


@dataclass(slots=True)
class Topology:
    """Builds one wire and what hangs on it. `prefix` makes the names of the namespaces unique on this machine.

    `namespaces` are those made so far: the owner removes them.
    """

    prefix: str = ""
    machines: list[Machine] = field(default_factory=list)
    pods: list[tuple[Machine, Host]] = field(default_factory=list)
    namespaces: list[Namespace] = field(default_factory=list)
    wire: Namespace = field(init=False)

    def __post_init__(self) -> None:
        self.wire = Namespace(f"{self.prefix}wire")

    def build(self) -> None:
        """Make the wire."""
        self._make(self.wire)

        def bridge() -> None:
            with IPRoute() as ip:
                ip.link("add", ifname="wire", kind="bridge")
                ip.link("set", index=_index(ip, "wire"), state="up")

        self.wire.run(bridge)

    def machine(self, name: str) -> Machine:
        """Add a machine to the wire."""
        number = len(self.machines) + 1
        machine = Machine(
            Namespace(f"{self.prefix}{name}"),
            f"{PREFIX_4}.0.{number}",
            _canonical(f"{PREFIX_6}::{number:x}"),
            number,
            f"port{number}",
        )
        self._make(machine.namespace)
        machine.namespace.run(_forward)
        self._cable(self.wire, machine.port, machine.namespace, "eth0", bridge="wire")
        machine.namespace.run(lambda: _addresses("eth0", machine.address, machine.address6))
        for other in self.machines:
            machine.namespace.run(_route_to(other))
            other.namespace.run(_route_to(machine))
        self.machines.append(machine)
        return machine

    def pod(self, machine: Machine, name: str) -> Host:
        """Add a namespace of its own behind `machine`, reached through it."""
        before = sum(owner is machine for owner, _ in self.pods)
        number = before + 10
        pod = Host(
            Namespace(f"{self.prefix}{name}"),
            f"{PREFIX_4}.{machine.number}.{number}",
            _canonical(f"{PREFIX_6}:{machine.number:x}::{number:x}"),
        )
        gateway4, gateway6 = f"{PREFIX_4}.{machine.number}.1", f"{PREFIX_6}:{machine.number:x}::1"
        if not before:
            machine.namespace.run(lambda: _pod_bridge(gateway4, gateway6))
        self._make(pod.namespace)
        self._cable(machine.namespace, f"pod{number}", pod.namespace, "eth0", bridge="pods")

        def address() -> None:
            _addresses("eth0", pod.address, pod.address6)
            with IPRoute() as ip:
                ip.route("add", dst="default", gateway=gateway4)
                ip.route("add", dst="default", gateway=gateway6, family=10)

        pod.namespace.run(address)
        self.pods.append((machine, pod))
        return pod

    def _make(self, namespace: Namespace) -> None:
        namespace.create()
        self.namespaces.append(namespace)
        namespace.run(_awaken)

    def _cable(self, here: Namespace, port: str, there: Namespace, ifname: str, *, bridge: str) -> None:
        """A veth pair: `port` on `here`'s `bridge`, `ifname` in `there`."""

        def lay() -> None:
            with IPRoute() as ip, there.path.open("rb") as far:
                ip.link("add", ifname=port, kind="veth", peer={"ifname": ifname, "net_ns_fd": far.fileno()})
                ip.link("set", index=_index(ip, port), master=_index(ip, bridge), state="up")

        here.run(lay)


def _canonical(address: str) -> str:
    return str(ipaddress.ip_address(address))


def _index(ip: IPRoute, ifname: str) -> int:
    return int(ip.link_lookup(ifname=ifname)[0])


def _awaken() -> None:
    # Duplicate address detection would keep an IPv6 address unusable for its first second.
    for scope in ("all", "default"):
        _sysctl(f"ipv6/conf/{scope}/accept_dad", "0")
    with IPRoute() as ip:
        ip.link("set", index=_index(ip, "lo"), state="up")


def _forward() -> None:
    _sysctl("ipv4/ip_forward", "1")
    _sysctl("ipv6/conf/all/forwarding", "1")


def _sysctl(name: str, value: str) -> None:
    path = Path("/proc/sys/net", name)
    if path.exists():  # a kernel without IPv6 has no such folder
        path.write_text(value)


def _addresses(ifname: str, address4: str, address6: str) -> None:
    with IPRoute() as ip:
        index = _index(ip, ifname)
        ip.link("set", index=index, state="up")
        ip.addr("add", index=index, address=address4, prefixlen=24)
        ip.addr("add", index=index, address=address6, prefixlen=64)


def _pod_bridge(gateway4: str, gateway6: str) -> None:
    with IPRoute() as ip:
        ip.link("add", ifname="pods", kind="bridge")
    _addresses("pods", gateway4, gateway6)


def _route_to(machine: Machine) -> Callable[[], None]:
    def add() -> None:
        with IPRoute() as ip:
            ip.route("add", dst=f"{PREFIX_4}.{machine.number}.0/24", gateway=machine.address)
            ip.route("add", dst=f"{PREFIX_6}:{machine.number:x}::/64", gateway=machine.address6)

    return add
