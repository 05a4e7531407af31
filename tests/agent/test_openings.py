"""A skip on the way in holds only where no policy would refuse anybody."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from agent.node.enrolment import enrol
from agent.openings import closed_because, opening, rest, skip, skipped, unattended
from agent.policy import Facts, compile_policies
from agent.snapshot import Snapshot
from ca.resources.capture import CaptureSettings, FailMode, Flow, Unmeshed
from ca.resources.capture import Skip as Said
from ca.resources.mesh import Mesh, MeshSpec, Mode
from ca.resources.metadata import Metadata
from ca.resources.node import Node, NodeSpec
from ca.resources.policy import (
    Action,
    AuthorizationPolicy,
    AuthorizationPolicySpec,
    From,
    Operation,
    Rule,
    Source,
    To,
)
from ca.resources.workload import Match, Workload, WorkloadSpec
from redirect.desired import Opening, Rest, Skip
from tests.agent.test_policy import ADDRESSES, CASES, view
from tests.agent.views import view as mesh_view


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_what_is_open_refuses_nobody(case: tuple[Any, ...]) -> None:
    policies, mode, namespace, labels = case
    snapshot, workload = view(policies, namespace, labels, mode)
    compiled = compile_policies(snapshot, workload)
    for port in (80, 443, 5432):
        if not closed_because(snapshot, workload, port):
            for source in ADDRESSES:
                for destination in ADDRESSES:
                    assert compiled.judge(Facts(None, source, destination, port)).allowed


def _policy(action: Action, *rules: Rule) -> AuthorizationPolicy:
    return AuthorizationPolicy(Metadata("p", "shop"), AuthorizationPolicySpec(action=action, rules=rules))


WEB = From(Source(principals=("td/ns/shop/sa/web",)))
AT_80 = To(Operation(ports=(80,)))


@pytest.mark.parametrize(
    ("policies", "mode", "why"),
    [
        ([], Mode.PERMISSIVE, ""),
        ([], Mode.STRICT, "mode STRICT of the mesh"),
        ([_policy(Action.ALLOW, Rule(from_=(WEB,)))], Mode.PERMISSIVE, "policy shop/p does not allow everybody there"),
        ([_policy(Action.ALLOW, Rule(to=(AT_80,)))], Mode.PERMISSIVE, ""),
        ([_policy(Action.ALLOW)], Mode.PERMISSIVE, "policy shop/p does not allow everybody there"),
        ([_policy(Action.DENY, Rule(to=(AT_80,)))], Mode.PERMISSIVE, "policy shop/p denies some callers there"),
        ([_policy(Action.DENY, Rule(to=(To(Operation(not_ports=(80,))),)))], Mode.PERMISSIVE, ""),
        ([_policy(Action.DENY, Rule(from_=(WEB,)))], Mode.PERMISSIVE, ""),
        (
            [_policy(Action.DENY, Rule(from_=(From(Source(not_principals=("td/ns/shop/sa/web",))),)))],
            Mode.PERMISSIVE,
            "policy shop/p denies some callers there",
        ),
    ],
)
def test_what_closes_a_port(policies: list[AuthorizationPolicy], mode: Mode, why: str) -> None:
    snapshot, workload = view(list(policies), "shop", {"mesh": "on"}, mode)
    assert closed_because(snapshot, workload, 80) == why


def _snapshot(
    own: CaptureSettings, common: CaptureSettings, mode: Mode = Mode.PERMISSIVE, *policies: AuthorizationPolicy
):
    db = Workload(Metadata("db", "shop", {"mesh": "on"}), WorkloadSpec("n1", "db", ports=(80, 9090), capture=own))
    mesh = Mesh(Metadata("mesh"), MeshSpec("td", mode=mode, capture=common))
    return Snapshot("n1").apply(1, [mesh, Node(Metadata("n1"), NodeSpec("10.0.0.9")), db, *policies], []), db


def test_mesh_and_workload_add_up() -> None:
    own = CaptureSettings(Flow(Said((1,), ("10.0.0.0/8",))), Flow(Said((9090,))))
    common = CaptureSettings(Flow(Said((2,), (), (990,))), Flow(Said((9999,), ("192.0.2.0/24",), (0,))))
    snapshot, db = _snapshot(own, common)
    assert skip(snapshot, db) == Skip((1, 2), ("10.0.0.0/8",), (990,))
    assert opening(snapshot, db) == (Opening((9090,), (80,), ("192.0.2.0/24",), (0,)), ())
    assert opening(*_snapshot(CaptureSettings(), CaptureSettings())) == (Opening(), ())


@pytest.mark.parametrize(
    ("address", "port", "expected"),
    [
        ("10.1.2.3", 80, True),
        ("11.1.2.3", 80, False),
        ("11.1.2.3", 2, True),
        ("fd00::1", 80, True),
        ("fd01::1", 9, False),
    ],
)
def test_whether_a_connection_is_skipped(address: str, port: int, expected: bool) -> None:
    own = CaptureSettings(Flow(Said((1,), ("10.0.0.0/8", "fd00::/16"))))
    common = CaptureSettings(Flow(Said((2,), (), (990,))))
    assert skipped(*_snapshot(own, common), address, port) is expected


@pytest.mark.parametrize(
    ("own", "common", "expected"),
    [
        (None, None, Rest.ALLOW),
        (None, Unmeshed.BLOCK, Rest.BLOCK),
        (Unmeshed.ALLOW, Unmeshed.BLOCK, Rest.ALLOW),
        (Unmeshed.BLOCK_ALL, None, Rest.BLOCK_ALL),
    ],
)
def test_of_the_rest_the_workload_has_the_last_word(
    own: Unmeshed | None, common: Unmeshed | None, expected: Rest
) -> None:
    assert rest(*_snapshot(CaptureSettings(unmeshed=own), CaptureSettings(unmeshed=common))) is expected


def test_a_port_that_is_closed_is_closed_to_all_who_would_be_let_past() -> None:
    own = CaptureSettings(in_=Flow(Said((9090,), ("192.0.2.0/24",))))
    only_80 = _policy(Action.ALLOW, Rule(to=(AT_80,)))
    found, problems = opening(*_snapshot(own, CaptureSettings(), Mode.PERMISSIVE, only_80))
    assert found == Opening((), (80,), ("192.0.2.0/24",))
    assert problems == (
        "workload shop/db: capture.in.skip does not hold at port 9090, which stays captured: policy shop/p does not "
        "allow everybody there",
    )


def test_strict_is_stronger_and_the_node_says_so() -> None:
    own = CaptureSettings(in_=Flow(Said((9090,))))
    snapshot, db = _snapshot(own, CaptureSettings(), Mode.STRICT)
    assert opening(snapshot, db)[0] == Opening()
    enrolment = enrol(
        mesh_view(*snapshot.workloads.values(), *snapshot.nodes.values(), snapshot.mesh, matches={"db": Match(uid=5)})
    )
    (local,) = enrolment.locals
    assert local.opening == Opening()
    (problem,) = enrolment.problems
    assert problem.endswith("stays captured: mode STRICT of the mesh")


def test_while_the_agent_is_away_no_policy_is_walked_past() -> None:
    snapshot, workload = view([_policy(Action.DENY, Rule(to=(AT_80,)))], "shop", {"mesh": "on"}, Mode.PERMISSIVE)
    spec = WorkloadSpec("n1", "db", ports=(80, 81), match=Match(uid=7), fail_mode=FailMode.OPEN)
    assert unattended(snapshot, Workload(workload.metadata, spec)) == (81,)
    assert unattended(snapshot, workload) == ()
    snapshot, workload = view([], "shop", {"mesh": "on"}, Mode.STRICT)
    assert unattended(snapshot, Workload(workload.metadata, spec)) == ()
