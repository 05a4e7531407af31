"""The judge keeps what it compiled, and never longer than it holds. What policies mean is tested in test_policy."""

import pytest

import agent.authorize
from agent.authorize import Authorizer
from agent.policy import Facts
from agent.snapshot import Snapshot
from ca.identity import WorkloadIdentity
from ca.resources.mesh import Mode
from tests.agent.views import mesh, node, workload
from tests.agent.worker.test_rejudge import DENY, WEB

DB = workload("db", ports=(81,))
START = Snapshot("n1").apply(1, [mesh(), node("n1"), node("n2", "10.0.0.2"), DB, workload("web", "n2")], ())
KNOWN, UNKNOWN = Facts(WEB, "10.0.0.2", "10.0.0.1", 81), Facts(None, "10.9.9.9", "10.0.0.1", 81)


def test_it_fails_closed():
    judge = Authorizer().judge
    assert not judge(Snapshot("n1"), KNOWN, DB).allowed
    assert not judge(START, KNOWN, workload("gone")).allowed
    assert not judge(START, KNOWN, workload("web", "n2")).allowed  # of another node
    foreign = Facts(WorkloadIdentity("other.example", "shop", "web"), "10.0.0.2", "10.0.0.1", 81)
    decision = judge(START, foreign, DB)
    assert not decision.allowed
    assert "other.example is not ours" in decision.reason


def test_permissive_and_strict():
    judge = Authorizer().judge
    strict = START.apply(2, [mesh(Mode.STRICT)], ())
    assert judge(START, KNOWN, DB).allowed
    assert judge(START, UNKNOWN, DB).allowed
    assert judge(strict, KNOWN, DB).allowed
    assert not judge(strict, UNKNOWN, DB).allowed
    assert judge(START, UNKNOWN, DB).allowed


@pytest.mark.parametrize(
    ("put", "allowed"), [([DENY], False), ([mesh(Mode.STRICT)], True), ([workload("db", ports=(81, 82))], True)]
)
def test_what_was_compiled_follows_every_change(put, allowed):
    authorizer = Authorizer()
    assert authorizer.judge(START, KNOWN, DB).allowed
    after = START.apply(2, put, ())
    db = after.here[DB.key]
    assert authorizer.judge(after, KNOWN, db).allowed is allowed
    assert authorizer.judge(START, KNOWN, DB).allowed  # and an older view is judged as it was


def test_it_compiles_once_and_forgets_who_is_gone(monkeypatch):
    compiled = []
    real = agent.authorize.compile_policies
    monkeypatch.setattr(agent.authorize, "compile_policies", lambda *a: compiled.append(a) or real(*a))
    authorizer = Authorizer()
    for revision in range(2, 30):
        view = START.apply(revision, [workload("other", "n2", ports=(1000 + revision,))], ())
        assert authorizer.judge(view, KNOWN, DB).allowed
    assert len(compiled) == 1
    authorizer.forget(view)
    assert len(authorizer._compiled) == 1
    authorizer.forget(view.apply(99, [], [DB.key]))
    assert authorizer._compiled == {}
