"""Rulings: what is remembered is what would be found again, and only for as long as the view is the same. What they say
is tested through whole tunnels in test_inbound."""

import agent.worker.admission
from agent.authorize import Authorizer
from agent.snapshot import Snapshot
from agent.worker.admission import Admission, Ruling, parse_forwarded
from ca.identity import WorkloadIdentity
from tests.agent.views import mesh, node, workload
from tests.agent.worker.test_rejudge import DENY, WEB

DB = WorkloadIdentity("shop.example", "shop", "db")
START = Snapshot("n1").apply(
    1, [mesh(), node("n1"), node("n2", "10.0.0.2"), workload("db", ports=(81,)), workload("web", "n2")], ()
)


def rule(admission: Admission, view: Snapshot, claimed: str = "10.0.0.2", authority: str = "10.0.0.1:81") -> Ruling:
    return admission.rule(view, WEB, DB, "10.0.0.9", claimed, authority)


def test_the_second_connection_is_not_judged_again_and_a_changed_view_is():
    admission = Admission(Authorizer())
    first = rule(admission, START)
    assert first.status == 200
    assert rule(admission, START) is first
    denied = START.apply(2, [DENY], ())
    assert rule(admission, denied).status == 401
    assert rule(admission, denied).reason.startswith("denied by policy")
    assert rule(admission, START).status == 200


def test_whatever_a_ruling_hangs_on_tells_them_apart():
    admission = Admission(Authorizer())
    assert rule(admission, START).source == "shop/web"
    assert (rule(admission, START, "10.0.0.7").source, rule(admission, START, "10.0.0.7").caller) == ("", "10.0.0.9")
    assert rule(admission, START, authority="10.0.0.1:82").status == 400
    other = WorkloadIdentity("shop.example", "shop", "other")
    assert admission.rule(START, WEB, other, "10.0.0.9", "10.0.0.2", "10.0.0.1:81").status == 400
    assert not admission.rule(START, other, DB, "10.0.0.9", "10.0.0.2", "10.0.0.1:81").believed


def test_a_peer_that_asks_for_ever_new_things_fills_no_memory(monkeypatch):
    monkeypatch.setattr(agent.worker.admission, "_KEPT", 10)
    admission = Admission(Authorizer())
    for port in range(1, 100):
        rule(admission, START, authority=f"10.0.0.1:{port}")
    assert len(admission._rulings) <= 10


def test_what_a_peer_says_it_speaks_for():
    assert parse_forwarded('for="10.0.0.2:4711"') == ("10.0.0.2", 4711)
    assert parse_forwarded('for="[fd00::2]:1"') == ("fd00::2", 1)
    for text in (
        "",
        "for=10.0.0.2:1",
        'for="10.0.0.2"',
        'for="10.0.0.2:1";by=x',
        'for="unknown"',
        'for="10.0.0.2:65536"',
    ):
        assert parse_forwarded(text) == ("", 0)
