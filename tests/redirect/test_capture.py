"""Who is captured, and who is not: real connections through the planned table."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from redirect.counts import Counts
from redirect.desired import Capture, Desired, Recognise
from redirect.kernel import Kernel
from redirect.namespace import in_namespace
from tests.redirect.conftest import Wire
from tests.redirect.traffic import MARKS, REFUSED, Seen, Server, located, nft, reached, reached_from_cgroup

FAR = ["10.77.0.9", "fd77::9"]
HERE = ["10.77.0.1", "fd77::1"]
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
WEB = Capture("shop/web", Recognise(uid=1001), 15101)
MESH = frozenset((address, 80) for address in (*FAR, *HERE, "10.77.0.10", "fd77::10"))
DESIRED = Desired((WEB,), MESH, agent_uids=(0, 990))


class World:
    """Servers in both machines on every port asked for, and a listener for each capture port."""

    def __init__(self, wire: Wire, stack: ExitStack) -> None:
        self.wire, self._stack = wire, stack

    def captured(self, port: int, mark: int = MARKS.agent) -> list[Server]:
        """The agent's listeners for a capture port, one for each IP version."""
        name = f"captured {port}"
        return [
            self._stack.enter_context(Server(self.wire.node, name, address, port, mark))
            for address in LOOPBACK.values()
        ]

    def inbound(self, port: int = 15006) -> list[Server]:
        """The agent's listeners for arriving plaintext: redirected packets come to the address of the link."""
        return [
            self._stack.enter_context(Server(self.wire.node, "inbound", address, port, MARKS.agent))
            for address in ("0.0.0.0", "::")
        ]

    def far(self, port: int = 80) -> None:
        for address in ("0.0.0.0", "::"):
            self._stack.enter_context(Server(self.wire.far, "far", address, port))

    def near(self, port: int) -> list[Server]:
        """An ordinary application on the node."""
        return [
            self._stack.enter_context(Server(self.wire.node, "application", address, port))
            for address in ("0.0.0.0", "::")
        ]

    def reached(self, address: str, port: int, uid: int = 0, **more: object) -> str:
        return reached(self.wire.node, address, port, uid, **more)  # type: ignore[arg-type]


@pytest.fixture
def world(wire: Wire) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(wire, stack)


def _version(address: str) -> int:
    return 6 if ":" in address else 4


@pytest.mark.parametrize("address", FAR)
def test_by_uid(world: World, kernel: Kernel, address: str) -> None:
    world.far()
    servers = world.captured(15101)
    assert world.reached(address, 80, uid=1001) == "far"
    kernel.apply(DESIRED)
    assert world.reached(address, 80, uid=1001) == "captured 15101"
    assert world.reached(address, 80, uid=1002) == "far"
    assert world.reached(address, 80, uid=0) == "far"
    assert [s.destination for server in servers for s in server.seen] == [(address, 80)]


@pytest.mark.parametrize("address", FAR)
def test_by_address(world: World, kernel: Kernel, address: str) -> None:
    own, other = ("fd77::2", "fd77::1") if ":" in address else ("10.77.0.2", "10.77.0.1")
    world.far()
    world.captured(15101)
    kernel.apply(replace(DESIRED, captures=(replace(WEB, recognise=Recognise(address=own)),)))
    assert world.reached(address, 80, source=own) == "captured 15101"
    assert world.reached(address, 80, source=other) == "far"


@pytest.mark.parametrize("address", FAR)
def test_everything(world: World, kernel: Kernel, address: str) -> None:
    world.far()
    world.far(81)
    world.captured(15101)
    kernel.apply(replace(DESIRED, captures=(replace(WEB, recognise=Recognise(everything=True)),)))
    for uid in (0, 1001, 4711):
        assert world.reached(address, 80, uid=uid) == "captured 15101"
        assert world.reached(address, 81, uid=uid) == "far"


@pytest.mark.parametrize("address", FAR)
def test_by_cgroup_before_uid(world: World, kernel: Kernel, cgroup: str, address: str) -> None:
    world.far()
    world.captured(15101)
    world.captured(15102)
    batch = Capture("shop/batch", Recognise(cgroup=located(cgroup)), 15102)
    kernel.apply(replace(DESIRED, captures=(WEB, batch)))
    node = world.wire.node
    assert reached_from_cgroup(node, cgroup, address, 80) == "captured 15102"
    assert world.reached(address, 80, uid=1001) == "captured 15101"
    assert world.reached(address, 80) == "far"


def test_the_deeper_cgroup_wins(world: World, kernel: Kernel, cgroup: str) -> None:
    world.far()
    world.captured(15102)
    world.captured(15103)
    inner = f"{cgroup}/inner"
    os.mkdir(inner)
    try:
        captures = (
            Capture("shop/outer", Recognise(cgroup=located(cgroup)), 15102),
            Capture("shop/inner", Recognise(cgroup=located(inner)), 15103),
        )
        kernel.apply(replace(DESIRED, captures=captures))
        node = world.wire.node
        assert reached_from_cgroup(node, inner, FAR[0], 80) == "captured 15103"
        assert reached_from_cgroup(node, cgroup, FAR[0], 80) == "captured 15102"
    finally:
        os.rmdir(inner)


@pytest.mark.parametrize("address", FAR)
def test_what_is_not_mesh_stays_direct_and_is_counted(world: World, kernel: Kernel, address: str) -> None:
    world.far(81)
    world.near(82)
    world.captured(15101)
    kernel.apply(DESIRED)
    assert world.reached(address, 81, uid=1001) == "far"
    assert world.reached(LOOPBACK[_version(address)], 82, uid=1001) == "application"
    assert kernel.counters().workloads == {"shop/web": Counts(captured=0, bypassed=2)}


@pytest.mark.parametrize("address", FAR)
def test_capture_all_takes_what_leaves_the_machine(world: World, kernel: Kernel, address: str) -> None:
    world.far(81)
    world.near(82)
    world.captured(15101)
    kernel.apply(replace(DESIRED, capture_all=True))
    assert world.reached(address, 81, uid=1001) == "captured 15101"
    assert world.reached(LOOPBACK[_version(address)], 82, uid=1001) == "application"
    assert world.reached(address, 81) == "far"


@pytest.mark.parametrize("port", [22, 15008, 15012])
def test_some_ports_are_never_captured(world: World, kernel: Kernel, port: int) -> None:
    world.far(port)
    world.captured(15101)
    everywhere = frozenset((address, port) for address in FAR)
    serves = tuple((address, port) for address in HERE)
    capture = replace(WEB, serves=serves, shares_address=True)
    kernel.apply(replace(DESIRED, captures=(capture,), mesh=everywhere, capture_all=True))
    for address in FAR:
        assert world.reached(address, port, uid=1001) == "far"
    # Inbound neither, whether from afar or from here.
    world.inbound()
    world.near(port)
    assert reached(world.wire.far, HERE[0], port) == "application"
    assert world.reached(HERE[0], port) == "application"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", *HERE, "10.77.0.2", "fd77::2"])
def test_calls_to_a_neighbour_over_loopback_are_captured_with_identity(
    world: World, kernel: Kernel, address: str
) -> None:
    """A workload on a shared address is called at any of the node's addresses."""
    world.near(80)
    world.captured(15101)
    world.inbound()
    db = Capture("shop/db", Recognise(uid=1002), 15102, tuple((a, 80) for a in HERE), shares_address=True)
    kernel.apply(replace(DESIRED, captures=(WEB, db)))
    assert world.reached(address, 80, uid=1001) == "captured 15101"
    # A caller without identity, from this very host, does not walk round STRICT.
    assert world.reached(address, 80, uid=4711) == "inbound"


@pytest.mark.parametrize("address", HERE)
def test_plaintext_from_afar_goes_to_the_agent(world: World, kernel: Kernel, address: str) -> None:
    own = replace(WEB, serves=tuple((a, 80) for a in HERE))
    world.near(80)
    world.near(81)
    servers = world.inbound()
    kernel.apply(replace(DESIRED, captures=(own,)))
    assert reached(world.wire.far, address, 80) == "inbound"
    assert reached(world.wire.far, address, 81) == "application"
    other = "fd77::2" if ":" in address else "10.77.0.2"
    assert reached(world.wire.far, other, 80) == "application"
    assert [s.destination for server in servers for s in server.seen] == [(address, 80)]
    kernel.apply(replace(DESIRED, captures=(replace(own, shares_address=True),)))
    assert reached(world.wire.far, other, 80) == "inbound"


@pytest.mark.parametrize("address", HERE)
def test_exemption_takes_mark_and_uid(world: World, kernel: Kernel, address: str) -> None:
    own = replace(WEB, recognise=Recognise(everything=True), serves=tuple((a, 80) for a in HERE), shares_address=True)
    world.near(80)
    world.captured(15101)
    kernel.apply(replace(DESIRED, captures=(own,)))
    assert world.reached(address, 80, uid=990, mark=MARKS.agent) == "application"
    assert world.reached(address, 80, uid=0, mark=MARKS.agent) == "application"
    # Bits outside the mask belong to others.
    assert world.reached(address, 80, uid=990, mark=MARKS.agent | 0xFFF0) == "application"
    assert world.reached(address, 80, uid=990) == "captured 15101"
    assert world.reached(address, 80, uid=1001, mark=MARKS.agent) == "captured 15101"
    assert world.reached(address, 80, uid=990, mark=0xC0170003) == "captured 15101"


@pytest.mark.parametrize("address", FAR)
def test_nobody_listening_means_refused_at_once(world: World, kernel: Kernel, address: str) -> None:
    world.far()
    kernel.apply(DESIRED)
    assert world.reached(address, 80, uid=1001) == REFUSED


def test_udp_is_left_alone(world: World, kernel: Kernel) -> None:
    kernel.apply(replace(DESIRED, capture_all=True))
    far, node = (
        in_namespace(n, lambda: socket.socket(type=socket.SOCK_DGRAM)) for n in (world.wire.far, world.wire.node)
    )
    with far, node:
        far.bind((FAR[0], 80))
        far.settimeout(3)
        node.sendto(b"datagram", (FAR[0], 80))
        assert far.recvfrom(100) == (b"datagram", ("10.77.0.1", node.getsockname()[1]))


def test_established_connections_stay_as_they_are(world: World, kernel: Kernel) -> None:
    listening = in_namespace(world.wire.far, lambda: socket.create_server((FAR[0], 80)))
    client = in_namespace(world.wire.node, lambda: socket.create_connection((FAR[0], 80), timeout=3))
    server = listening.accept()[0]
    server.settimeout(3)
    with listening, client, server:
        kernel.apply(replace(DESIRED, captures=(replace(WEB, recognise=Recognise(everything=True)),)))
        for said in (b"one", b"two"):
            client.sendall(said)
            assert server.recv(100) == said
            server.sendall(said)
            assert client.recv(100) == said
        assert world.reached(FAR[0], 80) == REFUSED


_DIALLER = """
import os, socket, sys, time
os.setresuid(1001, 1001, 1001)
count = 0
sys.stdout.write("dialling\\n")
sys.stdout.flush()
end = time.monotonic() + 60
while time.monotonic() < end:
    with socket.socket() as sock:
        sock.connect_ex(("10.77.0.9", 80))
    count += 1
    if count % 100 == 0:
        print(count, flush=True)
"""


def test_changes_leak_nothing(world: World, kernel: Kernel) -> None:
    """Whatever the moment, a new connection is captured: here refused, for nobody listens. The far end counts."""
    far, node = world.wire.far, world.wire.node
    nft(
        far,
        "table inet c { chain i { type filter hook input priority 0; tcp dport 80 counter reject with tcp reset; }; }",
    )
    kernel.apply(DESIRED)
    more = tuple(Capture(f"shop/w{n}", Recognise(uid=2000 + n), 15110 + n) for n in range(10))
    wanted = [
        replace(DESIRED, captures=(WEB, *more[: n % 10]), capture_all=n % 3 == 0, mesh=MESH | {("10.77.0.50", n + 1)})
        for n in range(300)
    ]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-S", "-E", "-c", _DIALLER], stdout=subprocess.PIPE, text=True)

    with in_namespace(node, start) as dialler:
        assert dialler.stdout
        assert dialler.stdout.readline() == "dialling\n"
        for each in wanted:
            kernel.apply(each)
        dialler.kill()
        dials = int((dialler.stdout.read().rpartition("\n")[0].splitlines() or ["0"])[-1])
    assert dials > 1000
    assert "counter packets 0 " in nft(far, "list", "table", "inet", "c")
    kernel.remove()
    assert world.reached(FAR[0], 80, uid=1001) == REFUSED
    assert "counter packets 1 " in nft(far, "list", "table", "inet", "c")


def test_the_leak_would_be_seen(world: World, kernel: Kernel) -> None:
    world.far()
    world.captured(15101)
    kernel.apply(DESIRED)
    kernel.remove()
    assert world.reached(FAR[0], 80, uid=1001) == "far"


def test_seen_peers_are_the_callers_own(world: World, kernel: Kernel) -> None:
    (server, _) = world.captured(15101)
    kernel.apply(DESIRED)
    world.reached(FAR[0], 80, uid=1001)
    assert server.seen == [Seen("10.77.0.1", (FAR[0], 80))]
