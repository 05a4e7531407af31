"""Two nodes on one wire, the servers on the second, and who is counted where: one rig for each peer.

The nodes are joined by a veth pair without a bridge. Congestion control is set for each route, because a namespace may
choose none that its machine has not listed as allowed.
"""

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.lab.lab import Lab
from agent.lab.namespace import Namespace
from agent.lab.place import Place
from agent.lab.process import Process
from bench.account import Account

ADDRESS_A, ADDRESS_B, SUBNET = "10.90.0.1", "10.90.0.2", "10.90.0.0/24"
HTTP, BULK = 8080, 5201
"""What the servers of node B listen on."""
CLIENT_UID, SERVER_UID = 6101, 6102
"""What load generators and servers run as; Culvert knows its workloads by these."""
CONGESTION = "cubic"
FALLBACK = "reno"
"""For routes that the peer makes itself, where the machine's default is neither and cubic is not ours to choose."""


@dataclass(frozen=True, slots=True)
class Node:
    """One of the two machines; `account` counts its end of the peer, `directory` is for that end's files."""

    name: str
    address: str
    namespace: Namespace
    account: Account
    directory: Path


@dataclass(slots=True)
class Rig:
    """One peer's two nodes; whoever builds it calls `close`. `everything` counts all that the benchmark runs, on every
    rig."""

    name: str
    lab: Lab
    a: Node
    b: Node
    servers: Account
    load: Account
    everything: Account

    @property
    def generator(self) -> Place:
        """Where load generators run."""
        return Place(self.a.namespace, uid=CLIENT_UID, cgroup=self.load.path)

    def server(self) -> Place:
        """Where the servers run."""
        return Place(self.b.namespace, uid=SERVER_UID, cgroup=self.servers.path)

    def start(self, name: str, place: Place, argv: list[str], env: dict[str, str] | None = None) -> Process:
        """Start a program of this rig; it ends with `end` or with the lab."""
        return self.lab.start(f"{self.name}-{name}", place, argv, env)

    async def end(self, process: Process) -> None:
        """End a program, and forget it."""
        await process.end()
        self.lab.processes.remove(process)

    def place(self, node: Node) -> Place:
        """Where the peer's own programs run: as root, counted for their node."""
        return Place(node.namespace, cgroup=node.account.path)

    @property
    def files(self) -> Path:
        """Where the servers have their files."""
        return self.lab.directory / f"{self.name}-servers"

    @property
    def blob(self) -> Path:
        """What the web server gives for /blob."""
        return self.files / "files/blob"

    async def close(self) -> None:
        """End what still runs here and take the nodes away; the accounts' cgroups go with the lab."""
        spaces = {node.namespace for node in (self.a, self.b)}
        for process in [p for p in self.lab.processes if p.place.namespace in spaces]:
            await self.end(process)
        for namespace in spaces:
            namespace.remove()
            self.lab.topology.namespaces.remove(namespace)


def build(lab: Lab, name: str) -> Rig:
    """Lay the wire and make the accounts; all of it ends with the lab."""
    nodes = [_node(lab, name, side, address) for side, address in (("a", ADDRESS_A), ("b", ADDRESS_B))]
    a, b = nodes
    _wire(a.namespace, b.namespace)
    for node in nodes:
        _address(node)
    servers, load = (Account(lab.cgroup(f"{name}-{group}")) for group in ("servers", "load"))
    return Rig(name, lab, a, b, servers, load, Account(lab.directory.name))


def _node(lab: Lab, rig: str, side: str, address: str) -> Node:
    namespace = Namespace(f"{lab.topology.prefix}{rig}-{side}")
    namespace.create()
    lab.topology.namespaces.append(namespace)
    directory = lab.directory / f"{rig}-{side}"
    directory.mkdir(mode=0o755)
    return Node(f"node-{side}", address, namespace, Account(lab.cgroup(f"{rig}-{side}")), directory)


def _wire(a: Namespace, b: Namespace) -> None:
    ip = _ip(a)
    # A name below /run/netns is what ip takes for the far end.
    ip("link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", b.name)


def _address(node: Node) -> None:
    ip = _ip(node.namespace)
    ip("link", "set", "lo", "up")
    ip("address", "add", f"{node.address}/24", "dev", "wire")
    ip("link", "set", "wire", "up")
    for local in ("127.0.0.0/8", "127.0.0.1", node.address):
        dev = "wire" if local == node.address else "lo"
        ip("route", "replace", "local", local, "dev", dev, "table", "local", "congctl", CONGESTION)
    ip("route", "replace", SUBNET, "dev", "wire", "src", node.address, "congctl", CONGESTION)
    node.namespace.run(_sysctls)


def _sysctls() -> None:
    for algorithm in (CONGESTION, FALLBACK):
        try:
            Path("/proc/sys/net/ipv4/tcp_congestion_control").write_text(algorithm)
            break
        except OSError:
            continue
    # More than by default: 10,000 idle connections and those in TIME_WAIT; and none that a server here listens on.
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text("20000 65000")


def _ip(namespace: Namespace) -> Callable[..., None]:
    def run(*words: str) -> None:
        line = Place(namespace).command([shutil.which("ip") or "ip", *words])
        done = subprocess.run(line, capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"{' '.join(line)}: {done.stderr.strip()}")

    return run
