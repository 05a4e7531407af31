"""Beside other owners' rules: both keep what is theirs, and conflicts are told with the other's name."""

from dataclasses import replace

import pytest

from redirect.conflicts import closed, conflicts, owners
from redirect.desired import Capture, Desired, Marks, Recognise
from redirect.kernel import Kernel
from redirect.neighbours import neighbours
from tests.redirect import strangers
from tests.redirect.conftest import Wire
from tests.redirect.traffic import MARKS, Server, ip, reached

WEB = Capture("shop/web", Recognise(uid=1001), 15101, (("10.77.0.1", 9090),), shares_address=True)
DESIRED = Desired((WEB,), frozenset({("10.77.0.9", 80)}))
OURS = ("culvert",)


def told(netns: str, marks: Marks = MARKS) -> list[str]:
    return conflicts(neighbours(OURS, netns), marks)


@pytest.mark.parametrize("owner", strangers.OWNERS)
@pytest.mark.parametrize("first", [True, False], ids=["theirs-first", "ours-first"])
def test_both_do_their_work_and_theirs_is_untouched(wire: Wire, kernel: Kernel, owner: str, first: bool) -> None:
    if first:
        strangers.settle(wire.node, owner)
    kernel.apply(DESIRED)
    if not first:
        strangers.settle(wire.node, owner)
    before = strangers.theirs(wire.node, owner)
    with (
        Server(wire.far, "clear", "10.77.0.9", 80),
        Server(wire.node, "agent", "127.0.0.1", 15101, MARKS.agent),
        Server(wire.node, "inbound", "0.0.0.0", 15006, MARKS.agent),
    ):
        assert reached(wire.node, "10.77.0.9", 80, uid=1001) == "agent"
        assert reached(wire.node, "10.77.0.9", 80) == "clear"
        assert reached(wire.node, "10.77.0.1", 9090) == "inbound"
        # Docker's translation of the same port does not come first; ufw drops what was redirected.
        arrived = reached(wire.far, "10.77.0.1", 9090)
        assert arrived == ("timeout" if owner.startswith("ufw") else "inbound")
    assert told(wire.node) == []
    assert kernel.differences(DESIRED) == []
    kernel.remove()
    assert strangers.theirs(wire.node, owner) == before


@pytest.mark.parametrize("owner", ["ufw-nft", "ufw-legacy"])
def test_the_documented_rule_lets_redirected_plaintext_through_and_nothing_else(
    wire: Wire, kernel: Kernel, owner: str
) -> None:
    strangers.settle(wire.node, owner, strangers.PLAINTEXT)
    kernel.apply(replace(DESIRED, captures=(replace(WEB, serves=(("10.77.0.1", 9090), ("10.77.0.1", 9091))),)))
    with Server(wire.node, "inbound", "0.0.0.0", 15006, MARKS.agent):
        assert reached(wire.far, "10.77.0.1", 9090) == "inbound"
        assert reached(wire.far, "10.77.0.1", 9091) == "timeout"
        assert reached(wire.far, "10.77.0.1", 15006) == "refused"  # by our own guard


def test_after_a_container_engine_its_translation_would_win(wire: Wire, kernel: Kernel) -> None:
    """Why our chains come first; and a setting that has them later is told of."""
    late = replace(MARKS, nat_priority=-95)
    strangers.settle(wire.node, "docker-nft")
    kernel.apply(replace(DESIRED, marks=late))
    with Server(wire.node, "inbound", "0.0.0.0", 15006, MARKS.agent):
        assert reached(wire.far, "10.77.0.1", 9090) != "inbound"
    assert told(wire.node, late) == [
        "table ip nat, chain PREROUTING (priority -100) translates addresses before ours (-95): set "
        "marks.nat_priority below it",
        "table ip nat, chain OUTPUT (priority -100) translates addresses before ours (-95): set "
        "marks.nat_priority below it",
    ]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("rule add fwmark 0x1/0x1 lookup 100 priority 77", "ip rule 77: fwmark 0x1/0x1 lookup 100 takes packets"),
        ("rule add from all lookup 100 priority 7", "ip rule 7: lookup 100 goes before ours (49)"),
        ("rule add from all lookup 49175 priority 700", "ip rule 700: lookup 49175 uses our routing table"),
        ("route add 192.0.2.0/24 dev lo table 49175", "somebody else has routes in table 49175"),
        ("-6 rule add fwmark 0xC0170000/0xffff0000 lookup 100 priority 88", "ip rule 88: fwmark 0xc0170000/0xffff0000"),
    ],
)
def test_others_routing_is_told(netns: str, kernel: Kernel, command: str, words: str) -> None:
    kernel.apply(DESIRED)
    assert told(netns) == []
    ip(netns, *command.split())
    (conflict,) = told(netns)
    assert conflict.startswith(words)


@pytest.mark.parametrize(
    "command",
    [
        "rule add fwmark 0x40000/0xff0000 lookup 100 priority 5210",
        "rule add not fwmark 0xca6c lookup 51820 priority 32764",
        "rule add from all lookup 100 priority 50",
        "route add 192.0.2.0/24 dev lo table 100",
    ],
)
def test_others_routing_that_is_in_nobodys_way(netns: str, command: str) -> None:
    """As a VPN or a mesh network has it."""
    ip(netns, *command.split())
    assert told(netns) == []


@pytest.mark.parametrize(
    ("rule", "does"),
    [
        ("meta mark & 0x1 == 0x1 drop", "(mark 0x1/0x1) takes packets with our marks"),
        ("meta mark 0xc0170001 accept", "(mark 0xc0170001/0xffffffff) takes packets with our marks"),
        ("meta mark set 0x10", "(mark 0x10/0xffffffff) overwrites bits"),
        ("ct mark set ct mark and 0xfffffff0 or 0x3", "(mark 0x3/0xf) overwrites bits"),
        ("meta mark & 0x4000 == 0x4000 accept", ""),
        ("meta mark set mark or 0x4000", ""),
        ("meta mark != 0x1 accept", ""),
        ("tcp dport 15008 accept", ""),
    ],
)
def test_others_marks_are_told(netns: str, rule: str, does: str) -> None:
    text = f"table inet other {{ chain o {{ type filter hook output priority 0\n{rule}\n}}\n}}\n"
    strangers.run(netns, "nft", "-f", "-", text=text)
    found = told(netns)
    assert [f.startswith("table inet other, chain o: ") and does in f for f in found] == ([True] if does else [])


@pytest.mark.parametrize("variant", ["iptables-nft", "ip6tables-nft"])
def test_marks_of_iptables_are_told(netns: str, variant: str) -> None:
    strangers.run(netns, variant, "-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-xmark", "0x4000/0x4000")
    strangers.run(
        netns, variant, "-t", "mangle", "-A", "OUTPUT", "-m", "mark", "--mark", "0x4000/0x4000", "-j", "ACCEPT"
    )
    assert told(netns) == []
    strangers.run(netns, variant, "-t", "mangle", "-A", "OUTPUT", "-j", "MARK", "--set-mark", "0x7")
    strangers.run(netns, variant, "-t", "mangle", "-A", "OUTPUT", "-m", "mark", "--mark", "0x1/0x1", "-j", "ACCEPT")
    family = "ip6" if variant.startswith("ip6") else "ip"
    found = told(netns)
    assert len(found) == 2
    assert all(f.startswith(f"table {family} mangle, chain OUTPUT: ") for f in found)


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        ("docker-nft", "Docker"),
        ("docker-legacy", "iptables-legacy nat"),
        ("ufw-nft", "ufw"),
        ("ufw-legacy", "iptables-legacy filter"),
        ("firewalld", "firewalld"),
    ],
)
def test_owners_are_named(netns: str, owner: str, name: str) -> None:
    assert owners(neighbours(OURS, netns)) == []
    strangers.settle(netns, owner)
    assert name in owners(neighbours(OURS, netns))


def test_a_firewall_that_lets_us_not_in_is_told(netns: str) -> None:
    strangers.settle(netns, "ufw-nft")
    found = neighbours(OURS, netns)
    assert closed(found, (15008,)) == []
    assert closed(found, (15008, 15006)) == ["table ip filter, chain INPUT lets no TCP port 15006 in"]
    strangers.settle(netns, "ufw-nft", strangers.PLAINTEXT)
    assert closed(neighbours(OURS, netns), (15008, 15006)) == []
