"""A connection followed hop by hop: each fault is named at the hop where it is."""

from dataclasses import replace

import msgspec
import pytest

from agent.answers import (
    CaptureAnswer,
    CaptureRow,
    CertificateRow,
    CertificatesAnswer,
    ConnectionsAnswer,
    StatusAnswer,
    TunnelsAnswer,
    WorkloadsAnswer,
)
from agent.connections import Connection, Direction, Party, Security, Tunnel, Verdict
from agent.explain import Hop, Known, NodeFacts, explain
from ca.contract import NodeStatus
from ca.resources.capture import CaptureSettings, Flow, Skip
from ca.resources.mesh import Mesh, MeshSpec, Mode
from ca.resources.metadata import Metadata
from ca.resources.node import Node, NodeSpec
from ca.resources.policy import Action, AuthorizationPolicy, AuthorizationPolicySpec, Rule
from ca.resources.workload import Workload, WorkloadSpec

WEB = Workload(Metadata("web", "shop", {"mesh": "on"}), WorkloadSpec("a", "web", ports=(8080,)))
DB = Workload(Metadata("db", "shop", {"mesh": "on"}), WorkloadSpec("b", "db", ports=(5432,)))
OBJECTS = [
    Mesh(Metadata("mesh"), MeshSpec("td")),
    Node(Metadata("a"), NodeSpec("10.0.0.1")),
    Node(Metadata("b"), NodeSpec("10.0.0.2")),
    WEB,
    DB,
]


def status(node: str, **changes: object) -> StatusAnswer:
    told = StatusAnswer(node, "td", "1", "c:1", True, "", 7, 7, True, "", True, 1, 1, 0, 0, 0, 0.0, 0.0)
    return msgspec.structs.replace(told, **changes)


def facts(node: str, workload: str) -> NodeFacts:
    return NodeFacts(
        status=status(node),
        workloads=WorkloadsAnswer([]),
        certificates=CertificatesAnswer(
            [CertificateRow(f"spiffe://td/ns/shop/sa/{workload}", "valid", "AB", 7200.0)], 3600.0
        ),
        capture=CaptureAnswer(True, [CaptureRow(f"shop/{workload}", "uid 1001", port=15100, captured=3)]),
        tunnels=TunnelsAnswer([]),
        connections=ConnectionsAnswer([], []),
    )


WELL = Known(
    7,
    [*OBJECTS],
    {n: NodeStatus(n, address, connected=True, active=7) for n, address in (("a", "10.0.0.1"), ("b", "10.0.0.2"))},
    {"a": facts("a", "web"), "b": facts("b", "db")},
)


def way(known: Known, port: int = 5432) -> list[Hop]:
    return explain(known, next(o for o in known.objects if o.key == WEB.key), "10.0.0.2", port)


def with_facts(node: str, **changes: object) -> Known:
    return replace(WELL, facts={**WELL.facts, node: replace(WELL.facts[node], **changes)})


def with_object(new: Workload | AuthorizationPolicy) -> Known:
    return replace(WELL, objects=[*(o for o in OBJECTS if o.key != new.key), new])


def test_a_way_without_a_fault() -> None:
    hops = way(WELL)
    assert [h.name for h in hops] == [
        "source",
        "source node",
        "capture",
        "source certificate",
        "route",
        "destination node",
        "destination certificate",
        "tunnel",
        "policy",
        "last connection",
    ]
    assert {h.state for h in hops} == {"ok"}


def refused(workload: str) -> Connection:
    return Connection(
        "1.1",
        Direction.INBOUND,
        Party(workload),
        Party("shop/db", address="10.0.0.2:5432"),
        Security.MTLS,
        1.0,
        Verdict.FAILED,
        reason="nobody accepts there",
        state="closed",
    )


@pytest.mark.parametrize(
    ("known", "hop", "text"),
    [
        (
            with_object(msgspec.structs.replace(WEB, metadata=Metadata("web", "shop"))),
            "source",
            "not enrolled: culvert",
        ),
        (replace(WELL, nodes={}), "source node", "it has not joined"),
        (with_facts("a", status=status("a", ready=False, not_ready="no rules")), "source node", "not ready: no rules"),
        (with_facts("a", capture=CaptureAnswer(False)), "capture", "capture is off"),
        (with_facts("a", capture=CaptureAnswer(True)), "capture", "no rule for it"),
        (with_facts("a", certificates=CertificatesAnswer([])), "source certificate", "its node has none"),
        (with_facts("b", certificates=CertificatesAnswer([])), "destination certificate", "its node has none"),
        (
            with_object(
                AuthorizationPolicy(
                    Metadata("no", "shop"), AuthorizationPolicySpec(action=Action.DENY, rules=(Rule(),))
                )
            ),
            "policy",
            "denied by policy shop/no rule 1",
        ),
        (
            with_facts("b", connections=ConnectionsAnswer([], [refused("shop/web")])),
            "last connection",
            "failed: nobody accepts there",
        ),
    ],
)
def test_the_hop_that_fails_is_the_last_one(known: Known, hop: str, text: str) -> None:
    last = way(known)[-1]
    assert (last.name, last.state) == (hop, "fail")
    assert text in last.text


def test_what_no_workload_serves_leaves_the_mesh() -> None:
    last = way(WELL, port=81)[-1]
    assert (last.name, last.state) == ("route", "ok")
    assert "in plaintext, outside the mesh" in last.text


def test_a_node_that_is_away_is_unknown_not_well() -> None:
    hops = way(replace(WELL, nodes={**WELL.nodes, "b": NodeStatus("b", "10.0.0.2")}))
    assert {h.name: h.state for h in hops}["destination node"] == "unknown"
    assert hops[-1].name == "last connection"


def test_connections_of_others_tell_nothing() -> None:
    known = with_facts("b", connections=ConnectionsAnswer([], [refused("shop/other")]))
    assert way(known)[-1].state == "ok"


def test_only_a_tunnel_that_we_dialled_is_ours() -> None:
    ends = ("spiffe://td/ns/shop/sa/web", "spiffe://td/ns/shop/sa/db")
    for direction, word in ((Direction.OUTBOUND, "open to"), (Direction.INBOUND, "none is open")):
        known = with_facts("a", tunnels=TunnelsAnswer([Tunnel("t", direction, *ends, "10.0.0.2", 1.0)]))
        assert word in {h.name: h.text for h in way(known)}["tunnel"]


def test_what_is_skipped_goes_past_the_mesh_and_is_judged_as_a_strangers() -> None:
    skip = CaptureSettings(out=Flow(skip=Skip(cidrs=("10.0.0.2/32",))))
    web = msgspec.structs.replace(WEB, spec=msgspec.structs.replace(WEB.spec, capture=skip))
    *_, route, policy = way(with_object(web))
    assert (route.name, route.state) == ("route", "ok")
    assert route.text.startswith("capture.out.skip names it")
    assert (policy.name, policy.state, policy.about) == ("policy", "ok", "shop/db")
    strict = Mesh(Metadata("mesh"), MeshSpec("td", mode=Mode.STRICT))
    known = replace(WELL, objects=[*(o for o in OBJECTS if not isinstance(o, Mesh) and o.key != web.key), strict, web])
    assert way(known)[-1].state == "fail"
