"""Network namespaces of the tests' own; no test touches the host's."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count

import pytest

from redirect.cgroup import mount_point
from redirect.desired import Capture, Desired, Hold, Recognise
from redirect.kernel import Kernel
from redirect.namespace import in_namespace
from tests.redirect.traffic import MARKS, Server, ip, reached, unique

_numbers = count(1)

FAR = ["10.77.0.9", "fd77::9"]
MESH = frozenset((address, 80) for address in (*FAR, "10.77.0.1", "fd77::1"))
UNIT = Capture("shop/unit", Recognise(uid=1), 15101, (("10.77.0.1", 80), ("fd77::1", 80)), shares_address=True)


@contextmanager
def namespace() -> Iterator[str]:
    """A network namespace with loopback up, for the time of the block; its name."""
    name = f"{unique()}-{next(_numbers)}"
    added = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if added.returncode:
        pytest.skip(f"ip netns add {name}: {added.stderr.strip()}")
    try:
        ip(name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def netns() -> Iterator[str]:
    """The name of a fresh network namespace with loopback up; removed afterwards."""
    with namespace() as name:
        yield name


@pytest.fixture
def kernel(netns: str) -> Iterator[Kernel]:
    """The table of that namespace."""
    kernel = Kernel(netns)
    yield kernel
    kernel.close()


@dataclass(frozen=True)
class Wire:
    """Two machines on one link. The node has addresses .1 and .2 (::1, ::2), the far one .9 and .10."""

    node: str
    far: str


@pytest.fixture
def wire(netns: str) -> Iterator[Wire]:
    """The node is `netns`. Everybody is a neighbour of everybody, and a default route exists."""
    with namespace() as far:
        ip(netns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", far)
        for name, hosts in ((netns, (1, 2)), (far, (9, 10))):
            for host in hosts:
                ip(name, "addr", "add", f"10.77.0.{host}/24", "dev", "eth0")
                ip(name, "addr", "add", f"fd77::{host}/64", "dev", "eth0", "nodad")
            ip(name, "link", "set", "eth0", "up")
        ip(netns, "route", "add", "default", "via", "10.77.0.9")
        ip(netns, "route", "add", "default", "via", "fd77::9")
        yield Wire(netns, far)


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A cgroup v2 directory of its own, one below the root."""
    root = mount_point()
    path = f"{root}/{unique()}-{next(_numbers)}"
    try:
        os.mkdir(path)
    except OSError as error:
        pytest.skip(f"mkdir {path}: {error.strerror}")
    try:
        yield path
    finally:
        os.rmdir(path)


@dataclass(frozen=True)
class Scene:
    """A container behind the node's bridge, whose addresses end in .5."""

    node: str
    far: str
    box: str
    kernel: Kernel
    card: str

    def reached(self, address: str, port: int = 80) -> str:
        return reached(self.box, address, port)

    def apply(self, hold: Hold, **rest: object) -> None:
        desired = replace(Desired((UNIT,), MESH, hold=hold), **rest)  # type: ignore[arg-type] # some of its fields
        self.kernel.apply(desired)
        assert self.kernel.differences(desired) == []


@pytest.fixture
def scene(wire: Wire, kernel: Kernel) -> Iterator[Scene]:
    node = wire.node
    with namespace() as box, ExitStack() as stack:
        ip(node, "link", "add", "boxes", "type", "bridge")
        ip(node, "link", "add", "veth0", "type", "veth", "peer", "name", "eth0", "netns", box)
        ip(node, "link", "set", "veth0", "master", "boxes", "up")
        for where, card, host in ((node, "boxes", 1), (box, "eth0", 5)):
            ip(where, "addr", "add", f"10.99.0.{host}/24", "dev", card)
            ip(where, "addr", "add", f"fd99::{host}/64", "dev", card, "nodad")
            ip(where, "link", "set", card, "up")
        for gateway, network in (("10.99.0.1", "10.99.0.0/24"), ("fd99::1", "fd99::/64")):
            ip(box, "route", "add", "default", "via", gateway)
            ip(wire.far, "route", "add", network, "via", "fd77::1" if ":" in network else "10.77.0.1")
        in_namespace(node, _forward)
        for address in ("0.0.0.0", "::"):
            for port in (80, 81):
                stack.enter_context(Server(wire.far, "far", address, port))
            stack.enter_context(Server(node, "inbound", address, 15006, MARKS.agent))
        card = ip(box, "-br", "link", "show", "eth0").split()[2]
        yield Scene(node, wire.far, box, kernel, card)


def _forward() -> None:
    for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
        with open(f"/proc/sys/net/{name}", "w") as file:
            file.write("1")
