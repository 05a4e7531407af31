"""Dialling a local application from the caller's own address, which is not this machine's."""

import errno
import select
import socket
import struct
import subprocess
from pathlib import Path

import pytest

from redirect.desired import Capture, Desired, Marks, Recognise
from redirect.kernel import Kernel
from redirect.namespace import in_namespace
from redirect.netlink import CaptureError
from redirect.origdst import listener, prefer_port, spoof_socket
from redirect.routing import PROTOCOL
from tests.redirect.conftest import Wire
from tests.redirect.traffic import MARKS, Seen, Server, as_user, family, ip

WEB = Capture("shop/web", Recognise(uid=1001), 15101, (("10.77.0.1", 80), ("fd77::1", 80)), shares_address=True)
DESIRED = Desired((WEB,), agent_uids=(990,))
CASES = [
    ("10.77.0.1", "10.77.0.9"),
    ("10.77.0.1", "198.51.100.7"),
    ("fd77::1", "fd77::9"),
    ("fd77::1", "2001:db8::7"),
]


def _cannot_prefer() -> bool:
    with socket.socket() as sock:
        return not prefer_port(sock, 40001)


needs_port_range = pytest.mark.skipif(_cannot_prefer(), reason="IP_LOCAL_PORT_RANGE: Linux 6.3 and later")


def dialled(netns: str, address: str, source: str, *wanted: int, port: int = 80) -> socket.socket:
    """The agent's connection from a borrowed address, and from the first of the ports `wanted` that is free; 0: any."""

    def dial() -> socket.socket:
        as_user(990)
        sock = spoof_socket(family(address), MARKS.spoof, source)
        sock.settimeout(5)
        for each in wanted or (None,):
            assert each is None or prefer_port(sock, each)
            code = sock.connect_ex((address, port))
            if code != errno.EADDRNOTAVAIL:
                break
        assert code == 0
        return sock

    return in_namespace(netns, dial)


def _talk(netns: str, address: str, source: str, uid: int = 990) -> bytes:
    """What the application says, and more than a window of bytes sent to it."""

    def dial() -> bytes:
        as_user(uid)
        with spoof_socket(family(address), MARKS.spoof, source) as sock:
            sock.settimeout(2)
            sock.connect((address, 80))
            assert sock.getsockname()[0] == source
            heard = sock.recv(100)
            sock.sendall(bytes(1_000_000))
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(100) == b""
            return heard

    return in_namespace(netns, dial)


@pytest.mark.parametrize(("address", "source"), CASES)
@pytest.mark.parametrize("whole", [False, True])
def test_bytes_flow_both_ways(wire: Wire, kernel: Kernel, address: str, source: str, whole: bool) -> None:
    """`whole` is the table that a workload's own network namespace gets."""
    capture = Capture("shop/web", Recognise(everything=True), 15101, WEB.serves) if whole else WEB
    kernel.apply(Desired((capture,), agent_uids=(990,), capture_all=whole))
    with Server(wire.node, "application", "::" if ":" in address else "0.0.0.0", 80) as server:
        assert _talk(wire.node, address, source) == b"application"
        assert server.seen == [Seen(source, None)]


@pytest.mark.parametrize("strictness", [1, 2])
def test_reverse_path_filters_do_not_matter(wire: Wire, kernel: Kernel, strictness: int) -> None:
    """Distributions differ in net.ipv4.conf.*.rp_filter; we change none of them."""

    def filtered() -> None:
        for interface in Path("/proc/sys/net/ipv4/conf").iterdir():
            (interface / "rp_filter").write_text(str(strictness))

    in_namespace(wire.node, filtered)
    kernel.apply(DESIRED)
    with Server(wire.node, "application", "0.0.0.0", 80):
        assert _talk(wire.node, "10.77.0.1", "10.77.0.9") == b"application"
        assert _talk(wire.node, "10.77.0.1", "198.51.100.7") == b"application"


def test_without_the_rules_it_would_time_out(wire: Wire) -> None:
    with Server(wire.node, "application", "0.0.0.0", 80), pytest.raises(TimeoutError):
        _talk(wire.node, "10.77.0.1", "198.51.100.7")


@pytest.mark.parametrize("address", ["10.77.0.1", "fd77::1"])
def test_a_refusal_comes_back_too(wire: Wire, kernel: Kernel, address: str) -> None:
    kernel.apply(DESIRED)
    with pytest.raises(ConnectionRefusedError):
        _talk(wire.node, address, "2001:db8::7" if ":" in address else "198.51.100.7")


def test_only_the_agents_uid_borrows(wire: Wire, kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    with Server(wire.node, "application", "0.0.0.0", 81), pytest.raises((TimeoutError, ConnectionRefusedError)):
        _talk(wire.node, "10.77.0.1", "198.51.100.7", uid=4711)


@needs_port_range
@pytest.mark.parametrize(("address", "source"), CASES)
def test_the_callers_own_port_is_taken_for_one_destination_only(
    wire: Wire, kernel: Kernel, address: str, source: str
) -> None:
    kernel.apply(DESIRED)
    anywhere = "::" if ":" in address else "0.0.0.0"
    with (
        in_namespace(wire.node, lambda: listener(family(address), anywhere, 80)),
        in_namespace(wire.node, lambda: listener(family(address), anywhere, 81)),
        dialled(wire.node, address, source, 40001) as first,
        dialled(wire.node, address, source, 40001, 0) as second,
        dialled(wire.node, address, source, 40001, port=81) as elsewhere,
        dialled(wire.node, address, source, 22) as outside,
    ):
        assert first.getsockname()[:2] == elsewhere.getsockname()[:2] == (source, 40001)
        assert second.getsockname()[1] not in (40001, 0)
        assert outside.getsockname()[1] not in (40001, 22)


@needs_port_range
@pytest.mark.parametrize(("address", "source"), CASES)
def test_a_port_that_a_peer_has_named_can_still_be_listened_at(
    wire: Wire, kernel: Kernel, address: str, source: str
) -> None:
    """Or whoever may call one server here would keep another one, that restarts, from its port."""
    kernel.apply(DESIRED)
    anywhere = "::" if ":" in address else "0.0.0.0"
    with (
        in_namespace(wire.node, lambda: listener(family(address), anywhere, 80)),
        dialled(wire.node, address, source, 40001) as agents,
        in_namespace(wire.node, lambda: listener(family(address), anywhere, 40001)) as restarted,
    ):
        assert agents.getsockname()[1] == restarted.getsockname()[1] == 40001


@pytest.mark.parametrize(("address", "source"), [("10.77.0.1", "10.77.0.9"), ("fd77::1", "fd77::9")])
@pytest.mark.parametrize("port", [15006, 80], ids=["captured", "left alone"])
def test_the_callers_own_connection_from_that_port_is_not_touched(
    wire: Wire, kernel: Kernel, address: str, source: str, port: int
) -> None:
    """The agent dials for one of the caller's connections, and gets the port that another one of them has."""
    kernel.apply(DESIRED if port == 15006 else Desired(agent_uids=(990,)))
    anywhere = "::" if ":" in address else "0.0.0.0"
    mark = MARKS.agent if port == 15006 else 0
    listening = in_namespace(wire.node, lambda: listener(family(address), anywhere, port, mark))
    listening.settimeout(5)

    def dial(source_port: int) -> socket.socket:
        as_user(990)
        sock = spoof_socket(family(address), MARKS.spoof)
        sock.bind((source, source_port))
        sock.settimeout(0.3)
        with pytest.raises(TimeoutError):
            sock.connect((address, 80))
        return sock

    with Server(wire.node, "application", anywhere, 80) if port == 15006 else listening:
        client = in_namespace(wire.far, lambda: socket.create_connection((address, 80), 5, (source, 0)))
        with listening.accept()[0] as accepted, client:
            agents = in_namespace(wire.node, lambda: dial(client.getsockname()[1]))
            client.sendall(b"there")
            assert accepted.recv(100) == b"there"
            accepted.sendall(b"back")
            assert client.recv(100) == b"back"
        with agents:
            assert select.select([], [agents], [], 10)[1]
            assert agents.getpeername()[:2] == (address, 80)
    listening.close()


@pytest.mark.parametrize(("address", "source"), [("10.77.0.1", "10.77.0.9"), ("fd77::1", "fd77::9")])
def test_nor_is_the_agents_by_the_callers(wire: Wire, kernel: Kernel, address: str, source: str) -> None:
    """The caller gets the port from which the agent dials; it is captured as soon as that is over."""
    kernel.apply(DESIRED)
    anywhere = "::" if ":" in address else "0.0.0.0"
    with Server(wire.node, "application", anywhere, 80), Server(wire.node, "agent", anywhere, 15006, MARKS.agent):
        agents = dialled(wire.node, address, source)
        client = in_namespace(wire.far, lambda: socket.socket(family(address)))
        with client:
            client.bind(agents.getsockname()[:2])
            client.settimeout(0.3)
            with agents:
                assert (agents.recv(100), agents.recv(100)) == (b"application", b"")
                before = _heard(agents)
                with pytest.raises(TimeoutError):
                    client.connect((address, 80))
                assert _heard(agents) == before
            assert select.select([], [client], [], 10)[1]
            client.settimeout(5)
            assert client.recv(100) == b"agent"


def _heard(sock: socket.socket) -> int:
    """Packets that came for it: tcpi_segs_in of linux/tcp.h."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 144)
    return int(struct.unpack_from("=I", info, 140)[0])


def test_rules_and_routes_are_installed_once_and_removed(netns: str, kernel: Kernel) -> None:
    for _ in range(2):
        kernel.apply(DESIRED, afresh=True)
        for version in ("-4", "-6"):
            rules = [line for line in ip(netns, version, "rule").splitlines() if "0xc0170002" in line]
            assert rules == [f"49:\tfrom all fwmark 0xc0170002/0xffff000f lookup 49175 proto {PROTOCOL}"]
            assert ip(netns, version, "route", "show", "table", "49175").startswith("local default dev lo proto 199")
    kernel.remove()
    assert "c017" not in ip(netns, "-4", "rule") + ip(netns, "-6", "rule")
    tables = ip(netns, "-4", "route", "show", "table", "all") + ip(netns, "-6", "route", "show", "table", "all")
    assert "49175" not in tables


def test_where_loopback_is_down(netns: str, kernel: Kernel) -> None:
    ip(netns, "link", "set", "lo", "down")
    with pytest.raises(CaptureError, match=r"routing route: .* is down.*`ip link set lo up`"):
        kernel.apply(DESIRED)
    ip(netns, "link", "set", "lo", "up")
    kernel.apply(DESIRED)
    assert kernel.differences(DESIRED) == []


def test_other_marks_are_removed_by_name(netns: str, kernel: Kernel) -> None:
    marks = Marks(agent=0x10000001, spoof=0x10000002, route_table=77)
    kernel.apply(Desired(marks=marks))
    assert kernel.differences(Desired(marks=marks)) == []
    kernel.remove(marks)
    assert "lookup 77" not in ip(netns, "rule")


def test_numbers_that_were_changed_leave_nothing_behind(netns: str, kernel: Kernel) -> None:
    """A setting was changed while the agent was away: whoever comes next knows the new numbers only."""
    ip(netns, "rule", "add", "fwmark", "0x9", "lookup", "99", "priority", "9")
    others = ip(netns, "rule"), ip(netns, "-6", "rule")
    kernel.apply(Desired(marks=Marks(spoof=0x10000002, mask=0xF000000F, route_table=77, rule_priority=60)))
    assert "60:" in ip(netns, "rule")
    again = Kernel(netns)
    again.apply(Desired())
    assert again.differences(Desired()) == []
    again.close()
    for version in ("-4", "-6"):
        assert "lookup 77" not in ip(netns, version, "rule")
        assert ip(netns, version, "route", "show", "table", "all", "proto", str(PROTOCOL)).count("table 77") == 0
    kernel.remove(Marks(route_table=78))
    assert (ip(netns, "rule"), ip(netns, "-6", "rule")) == others
    assert ip(netns, "route", "show", "table", "all", "proto", str(PROTOCOL)) == ""


def test_where_ipv6_is_switched_off(netns: str, kernel: Kernel) -> None:
    off = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6"
    in_namespace(netns, lambda: subprocess.run(["sh", "-c", off], check=True))
    kernel.apply(DESIRED)
    assert kernel.differences(DESIRED) == []
    kernel.remove()
    assert kernel.held() is None
