"""Who decided over connections, as Prometheus is told; the reasons are those of the evaluator itself."""

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.authorize import Authorizer
from agent.connections import Connection, Direction, Party, Security, Verdict
from agent.policy import Facts as Judged
from agent.telemetry.decisions import MOST, NONE, OTHERS, Decisions, policy_of
from agent.telemetry.metrics import Facts, TcpCounts, exposition
from ca.identity import WorkloadIdentity
from ca.resources.kinds import decode
from ca.resources.mesh import Mode
from tests.agent.views import mesh, node, view, workload

NUMBERS = iter(range(1_000_000))


def connection(**facts) -> Connection:
    given = {
        "id": f"1.{next(NUMBERS)}",
        "direction": Direction.INBOUND,
        "source": Party("shop/web"),
        "destination": Party("shop/db"),
        "security": Security.MTLS,
        "opened": 0.0,
        "verdict": Verdict.ALLOWED,
    }
    return Connection(**(given | facts))


def counted(counts: TcpCounts) -> dict[tuple[str, str, str], float]:
    families = text_string_to_metric_families(exposition(counts, Facts(), 0.0).decode())
    samples = [s for f in families for s in f.samples if s.name == "culvert_policy_decisions_total"]
    return {(s.labels["decision"], s.labels["policy"], s.labels["reason"]): s.value for s in samples}


def policy(name: str, action: str, principal: str, dry_run: bool = False):
    source = {"source": {"principals": [principal]}}
    spec = {"action": action, "dryRun": dry_run, "rules": [{"from": [source]}]}
    metadata = {"namespace": "shop", "name": name}
    return decode(msgspec.json.encode({"kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec}))


@pytest.mark.parametrize(
    ("policies", "strict", "caller", "decision", "named"),
    [
        ([policy("open", "ALLOW", "*/sa/web")], False, "web", "allowed", "shop/open"),
        ([policy("open", "ALLOW", "*/sa/web")], False, "other", "denied", "shop/open"),
        ([policy("closed", "DENY", "*/sa/web")], False, "web", "denied", "shop/closed"),
        ([policy("trial", "DENY", "*/sa/web", dry_run=True)], False, "web", "would-deny", "shop/trial"),
        ([policy("trial", "ALLOW", "*/sa/web", dry_run=True)], False, "other", "would-deny", "shop/trial"),
        ([], True, None, "denied", ""),
        ([], False, "web", "allowed", ""),
    ],
)
def test_each_decision_is_counted_by_its_own_words(policies, strict, caller, decision, named):
    made = mesh(Mode.STRICT if strict else Mode.PERMISSIVE)
    snapshot = view(made, node("n1"), workload("db", ports=(5432,)), *policies).snapshot
    identity = WorkloadIdentity(made.spec.trust_domain, "shop", caller) if caller else None
    (db,) = snapshot.here.values()
    said = Authorizer().judge(snapshot, Judged(identity, "10.0.0.9", "10.0.0.1", 5432), db)
    allowed = Verdict.ALLOWED if said.allowed else Verdict.REFUSED
    record = connection(
        verdict=allowed,
        carried=said.allowed,
        policy=said.reason if said.allowed else "",
        reason="" if said.allowed else said.reason,
        dry_run=said.would_deny,
    )
    counts = TcpCounts()
    counts.closed(record, 0.0)
    reason = said.would_deny if decision == "would-deny" else said.reason or NONE
    assert counted(counts)[decision, named, reason] == 1


def test_once_for_each_connection_however_often_it_is_looked_at():
    counts = TcpCounts()
    live = connection(carried=True, policy="allowed by policy shop/p rule 1")
    for now in range(3):
        counts.live([live], now)
    assert counted(counts) == {("allowed", "shop/p", "allowed by policy shop/p rule 1"): 1}
    ended = connection(
        id=live.id, carried=True, policy=live.policy, verdict=Verdict.REFUSED, reason="denied by policy shop/q rule 2"
    )
    counts.closed(ended, 4)
    assert counted(counts) == {
        ("allowed", "shop/p", "allowed by policy shop/p rule 1"): 1,
        ("denied", "shop/q", "denied by policy shop/q rule 2"): 1,
    }


def test_what_strangers_say_makes_no_series():
    counts = TcpCounts()
    for i in range(5):
        reason = f"authority 'policy a/b rule {i}' is no IP address and port"
        counts.closed(connection(verdict=Verdict.REFUSED, reason=reason), 0)
    counts.closed(connection(direction=Direction.OUTBOUND, carried=True), 0)
    assert counted(counts) == {}


def test_reasons_are_bounded():
    decisions = Decisions()
    for i in range(MOST + 50):
        decisions.ended(connection(verdict=Verdict.REFUSED, reason=f"denied by policy shop/p{i} rule 1"))
    rows = dict(decisions.rows())
    assert len(rows) == MOST + 1
    assert rows["denied", "", OTHERS] == 50


@pytest.mark.parametrize(
    ("reason", "policy"),
    [
        ("denied by policy shop/p rule 1", "shop/p"),
        ("allowed by no rule of policy shop/a, shop/b and others", "shop/a"),
        ("allowed by no rule of policy shop/a", "shop/a"),
        ("policy shop/a would not allow", "shop/a"),
        ("peer authentication shop/x: shop/db accepts no connection without an identity", "shop/x"),
        ("peer authentication shop/x port 80: shop/db accepts no connection without an identity", "shop/x"),
        ("mode STRICT of the mesh: shop/db accepts no connection without an identity", ""),
    ],
)
def test_the_policy_of_a_reason(reason, policy):
    assert policy_of(reason) == policy
