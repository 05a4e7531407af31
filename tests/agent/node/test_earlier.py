"""Which connections are older than enrolment."""

from dataclasses import replace

import pytest

from agent.node.earlier import earlier
from redirect.desired import Capture, Desired, Marks, Opening, Recognise, Skip
from redirect.diag import ESTABLISHED, LISTEN, TIME_WAIT, Sock

WEB = Capture("shop/web", Recognise(uid=1001), 15101, (("10.0.0.1", 80),), shares_address=True)
TABLE = Desired((WEB,), frozenset({("10.0.0.9", 5432), ("10.0.0.1", 80)}))
MARKS = Marks()
FAR, NEAR = ("10.0.0.9", 5432), ("10.0.0.1", 40000)
numbers = iter(range(1, 10**6))


def sock(local: tuple[str, int], remote: tuple[str, int], uid: int = 0, **more: int) -> Sock:
    facts = {"state": ESTABLISHED, "inode": 1, "mark": 0, "cgroup": 0} | more
    identity = next(numbers).to_bytes(48, "big")
    return Sock(local, remote, facts["state"], uid, facts["inode"], facts["mark"], facts["cgroup"], 2, identity)


def told(*socks: Sock, table: Desired = TABLE, **cgroups: set[int]) -> list[tuple[str, str]]:
    return [(e.workload, e.way) for e in earlier(socks, table, {k.replace("_", "/"): v for k, v in cgroups.items()})]


def test_what_goes_to_the_mesh_by_itself() -> None:
    assert told(sock(NEAR, FAR, 1001)) == [("shop/web", "out")]


def test_what_the_agent_carries_is_none() -> None:
    """At our end of a captured connection is a socket of the agent's."""
    assert told(sock(NEAR, FAR, 1001), sock(("127.0.0.1", 15101), NEAR, mark=MARKS.agent)) == []
    server, caller = ("10.0.0.1", 80), ("10.0.0.7", 5555)
    listening = sock(server, ("0.0.0.0", 0), 1001, state=LISTEN)
    carried = sock(server, caller, 1001), sock(caller, server, 990, mark=MARKS.spoof)
    assert told(listening, *carried) == []
    assert told(listening, *carried, sock(server, ("10.0.0.8", 5555), 1001)) == [("shop/web", "in")]


@pytest.mark.parametrize(
    "other",
    [
        sock(NEAR, ("10.0.0.9", 5433), 1001),
        sock(NEAR, FAR, 1002),
        sock(NEAR, FAR, 1001, mark=MARKS.agent),
        sock(NEAR, FAR, 1001, state=TIME_WAIT),
        sock(NEAR, ("10.0.0.9", 22), 1001),
        sock(("10.0.0.1", 22), FAR, 1001),
    ],
)
def test_what_is_none(other: Sock) -> None:
    table = replace(TABLE, mesh=TABLE.mesh | {("10.0.0.9", 22)})
    assert told(other, table=table) == []


def test_plaintext_from_before() -> None:
    for local in (("10.0.0.1", 80), ("127.0.0.1", 80)):
        listening = sock(("0.0.0.0", 80), ("0.0.0.0", 0), 1001, state=LISTEN)
        assert told(listening, sock(local, ("10.0.0.7", 5555), 1001)) == [("shop/web", "in")]


def test_both_ends_of_a_local_one() -> None:
    db = Capture("shop/db", Recognise(uid=1002), 15102, (("10.0.0.1", 5432),), shares_address=True)
    table = replace(TABLE, captures=(WEB, db))
    client, server = ("127.0.0.1", 40000), ("127.0.0.1", 5432)
    listening = sock(("0.0.0.0", 5432), ("0.0.0.0", 0), 1002, state=LISTEN)
    found = told(listening, sock(client, server, 1001), sock(server, client, 1002), table=table)
    assert found == [("shop/web", "out"), ("shop/db", "in")]


def test_the_closest_description_says_whose_it_is() -> None:
    unit = Capture("shop/unit", Recognise(cgroup=(2, 7)), 15103)
    deeper = Capture("shop/deeper", Recognise(cgroup=(3, 8)), 15104)
    table = replace(TABLE, captures=(WEB, unit, deeper))
    assert told(sock(NEAR, FAR, 1001, cgroup=9), table=table, shop_unit={7, 8, 9}) == [("shop/unit", "out")]
    both = told(sock(NEAR, FAR, 1001, cgroup=8), table=table, shop_unit={7, 8, 9}, shop_deeper={8})
    assert both == [("shop/deeper", "out")]
    whole = replace(TABLE, captures=(replace(WEB, recognise=Recognise(everything=True)),))
    assert told(sock(NEAR, FAR, 4), table=whole) == [("shop/web", "out")]


def test_what_would_be_left_alone_now_is_none() -> None:
    for skip in (Skip(ports=(5432,)), Skip(networks=("10.0.0.0/8",)), Skip(uids=(1001,))):
        assert told(sock(NEAR, FAR, 1001), table=replace(TABLE, captures=(replace(WEB, skip=skip),))) == []
    listening = sock(("0.0.0.0", 80), ("0.0.0.0", 0), 1001, state=LISTEN)
    arrived = sock(("10.0.0.1", 80), ("10.0.0.7", 5555), 1001)
    for opening in (Opening(everyone=(80,)), Opening(ports=(80,), networks=("10.0.0.7/32",))):
        table = replace(TABLE, captures=(replace(WEB, opening=opening),))
        assert told(listening, arrived, table=table) == []
    assert told(sock(NEAR, FAR, 1001), table=replace(TABLE, spared=frozenset({FAR}))) == []
    assert told(listening, arrived, table=replace(TABLE, login_ports=frozenset({80}))) == []


def test_everything_is_captured() -> None:
    anywhere = sock(NEAR, ("192.0.2.1", 443), 1001)
    assert told(anywhere) == []
    assert told(anywhere, table=replace(TABLE, capture_all=True)) == [("shop/web", "out")]
