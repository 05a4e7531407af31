"""What settings leave alone: real connections through the planned table."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from redirect.counts import Counts
from redirect.desired import Capture, Desired, Opening, Recognise, Skip
from redirect.kernel import Kernel
from redirect.ruleset import Key, network_elements
from tests.redirect.conftest import Wire
from tests.redirect.traffic import MARKS, Server, nft, reached

FAR = ["10.77.0.9", "fd77::9"]
HERE = ["10.77.0.1", "fd77::1"]
WEB = Capture("shop/web", Recognise(uid=1001), 15101)
EVERYTHING = replace(WEB, recognise=Recognise(everything=True))
MESH = frozenset((address, port) for address in (*FAR, "10.77.0.10", "fd77::10") for port in (80, 81))


@pytest.fixture
def far(wire: Wire) -> Iterator[Wire]:
    """Servers on the far machine, and the agent's listeners here."""
    with ExitStack() as stack:
        for address in ("0.0.0.0", "::"):
            for port in (80, 81):
                stack.enter_context(Server(wire.far, "far", address, port))
                stack.enter_context(Server(wire.node, "application", address, port))
            stack.enter_context(Server(wire.node, "agent", address, 15006, MARKS.agent))
        for address in ("127.0.0.1", "::1"):
            stack.enter_context(Server(wire.node, "captured", address, 15101, MARKS.agent))
        yield wire


@pytest.mark.parametrize("address", FAR)
def test_ports(far: Wire, kernel: Kernel, address: str) -> None:
    kernel.apply(Desired((replace(WEB, skip=Skip(ports=(81,))),), MESH))
    assert reached(far.node, address, 81, 1001) == "far"
    assert reached(far.node, address, 80, 1001) == "captured"
    assert kernel.counters().workloads == {"shop/web": Counts(captured=1, bypassed=1, skipped=1)}


@pytest.mark.parametrize(
    ("network", "skipped", "captured"),
    [
        ("10.77.0.9/32", "10.77.0.9", "10.77.0.10"),
        ("10.77.0.8/31", "10.77.0.9", "10.77.0.10"),
        ("fd77::9/128", "fd77::9", "fd77::10"),
        ("fd77::8/125", "fd77::9", "fd77::10"),
    ],
)
def test_networks(far: Wire, kernel: Kernel, network: str, skipped: str, captured: str) -> None:
    # Others around it, the highest and the lowest there are among them.
    others = ("0.0.0.0/8", "10.77.0.11/32", "255.0.0.0/8", "ff00::/8", "::/128")
    kernel.apply(Desired((replace(WEB, skip=Skip(networks=(network, *others))),), MESH))
    assert reached(far.node, skipped, 80, 1001) == "far"
    assert reached(far.node, captured, 80, 1001) == "captured"


@pytest.mark.parametrize("address", FAR)
def test_uids(far: Wire, kernel: Kernel, address: str) -> None:
    kernel.apply(Desired((replace(EVERYTHING, skip=Skip(uids=(1002,))),), MESH))
    assert reached(far.node, address, 80, 1002) == "far"
    assert reached(far.node, address, 80, 1001) == "captured"


@pytest.mark.parametrize("address", FAR)
def test_ranges_that_overlap_the_old_ones_take_their_place(far: Wire, kernel: Kernel, address: str) -> None:
    v6 = ":" in address
    wide, narrow, other = (
        ("fd77::/16", f"{address}/128", "fd77::10/128") if v6 else ("10.0.0.0/8", f"{address}/32", "10.77.0.10/32")
    )
    for network, expected in ((wide, "far"), (narrow, "far"), (wide, "far"), (other, "captured"), (wide, "far")):
        desired = Desired((replace(WEB, skip=Skip(networks=(network,))),), MESH)
        kernel.apply(desired)
        assert kernel.differences(desired) == []
        assert reached(far.node, address, 80, 1001) == expected, network


@pytest.mark.parametrize("address", HERE)
def test_openings(far: Wire, kernel: Kernel, address: str) -> None:
    serves = tuple((a, p) for a in HERE for p in (80, 81))
    closed = Capture("shop/db", Recognise(uid=1002), 15102, serves)

    def came(opening: Opening, *, shared: bool = False) -> list[str]:
        kernel.apply(Desired((replace(closed, opening=opening, shares_address=shared),), MESH))
        return [reached(far.far, address, port) for port in (80, 81)]

    assert came(Opening()) == ["agent", "agent"]
    assert came(Opening(everyone=(81,))) == ["agent", "application"]
    assert came(Opening(everyone=(81,)), shared=True) == ["agent", "application"]
    near, strangers = ("fd77::/64", "fd78::/16") if ":" in address else ("10.77.0.9/32", "10.78.0.0/16")
    assert came(Opening(ports=(80,), networks=(near,))) == ["application", "agent"]
    assert came(Opening(ports=(80, 81), networks=(strangers,))) == ["agent", "agent"]
    assert came(Opening(ports=(), networks=(near,))) == ["agent", "agent"]
    # By uid only those of this machine; what came over the wire has none.
    assert came(Opening(ports=(80,), uids=(0, 4711))) == ["agent", "agent"]
    for uid, expected in ((4711, "application"), (4712, "agent")):
        assert reached(far.node, address, 80, uid) == expected
    assert reached(far.node, address, 81, 4711) == "agent"
    assert kernel.counters().workloads["shop/db"] == Counts(skipped=4, bypassed=4)


def test_an_opening_is_open_on_every_address_of_a_shared_one(far: Wire, kernel: Kernel) -> None:
    shared = Capture("shop/db", Recognise(uid=1002), 15102, (("10.77.0.1", 80),), shares_address=True)
    for address in ("127.0.0.1", "::1", "10.77.0.2"):
        kernel.apply(Desired((shared,), MESH))
        assert reached(far.node, address, 80) == "agent"
        kernel.apply(Desired((replace(shared, opening=Opening(everyone=(80,))),), MESH))
        assert reached(far.node, address, 80) == "application"


@pytest.mark.parametrize("address", HERE)
def test_what_is_skipped_on_its_way_out_is_not_let_in_by_that(far: Wire, kernel: Kernel, address: str) -> None:
    """A neighbour on the same machine is reached as a stranger, whom the agent judges."""
    db = Capture("shop/db", Recognise(uid=1002), 15102, tuple((a, 80) for a in HERE))
    kernel.apply(Desired((replace(WEB, skip=Skip(ports=(80,))), db), MESH))
    assert reached(far.node, address, 80, 1001) == "agent"


def test_the_listing_reads_well(netns: str, kernel: Kernel) -> None:
    skip = Skip(
        (5353,), ("10.1.2.0/24", "10.1.3.0/24", "10.9.0.0/16", "192.0.2.7/32", "255.0.0.0/8", "fd00::/8"), (990,)
    )
    opening = Opening((9090,), (80,), ("10.0.0.0/8",), (0,))
    kernel.apply(Desired((replace(WEB, serves=(("10.0.0.1", 80),), skip=skip, opening=opening),)))
    listing = " ".join(nft(netns, "list", "table", "inet", "culvert").split())
    for text in (
        "set skip4/shop/web { type ipv4_addr flags interval elements = { 10.1.2.0/23, 10.9.0.0/16, 192.0.2.7, "
        "255.0.0.0/8 } }",
        "set skip6/shop/web { type ipv6_addr flags interval elements = { fd00::/8 } }",
        'tcp dport @skip/shop/web counter packets 0 bytes 0 goto inbound comment "skipped"',
        'ip daddr @skip4/shop/web counter packets 0 bytes 0 goto inbound comment "skipped"',
        'meta skuid @skip-uids/shop/web counter packets 0 bytes 0 goto inbound comment "skipped"',
        "ip daddr . tcp dport @into4/shop/web goto into/shop/web",
        'tcp dport @open/shop/web counter packets 0 bytes 0 accept comment "skipped"',
        'ip saddr @open-to4/shop/web counter packets 0 bytes 0 accept comment "skipped"',
    ):
        assert text in listing, text


def test_networks_within_networks_are_one() -> None:
    elements = network_elements(["10.0.0.0/8", "10.1.0.0/16", "0.0.0.0/0", "fd00::1/128"])
    assert {k: [k.show(e) for e in es] for k, es in elements.items()} == {
        Key.NETWORK4: ["0.0.0.0/0"],
        Key.NETWORK6: ["fd00::1"],
    }
