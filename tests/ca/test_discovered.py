import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.contract import FoundRequest, NotRegistered, ResourceName
from ca.discovered import adopt, orphans, outlawed
from ca.registry import RegistryError, State, change, label
from ca.resources.kinds import Resource, encode
from ca.resources.metadata import Key, Metadata
from ca.resources.node import Discovery, Node, NodeSpec
from ca.resources.workload import Match, Origin, Workload, WorkloadSpec
from tests.ca.objects import workload

SHOP = Discovery(("shop",), ("web", "api"), ("172.17.0.0/16",))


def node(name: str = "a", discovery: Discovery | None = SHOP, address: str = "10.0.0.1") -> Node:
    return Node(metadata=Metadata(name), spec=NodeSpec(address, discovery=discovery))


def found(
    name: str, uid: int = 1, *ports: int, account: str = "web", on: str = "a", source: str = "files", **more: str
) -> Workload:
    labels = {"app": name} | {k: v for k, v in more.items() if k not in ("namespace", "address")}
    return Workload(
        metadata=Metadata(name, more.get("namespace", "shop"), labels),
        spec=WorkloadSpec(
            on, account, more.get("address", ""), ports, Match(uid=uid), found=Origin(source, labels)
        ),
    )  # fmt: skip


def mesh(*resources: Resource) -> State:
    return change(State("i"), [node(), *resources]).state


def report(state: State, *workloads: Resource, sources: tuple[str, ...] = ("files",)) -> tuple[State, list[str]]:
    raws = [msgspec.Raw(encode(w)) for w in workloads]
    outcome, refused = adopt(state, "a", FoundRequest(raws, list(sources)))
    return outcome.state, [f"{r.namespace}/{r.name}: {r.why}" for r in refused]


def names(state: State) -> list[str]:
    return [w.metadata.name for w in state.on_node("a")]


def test_what_is_found_is_registered_and_what_is_gone_goes() -> None:
    state, refused = report(mesh(), found("web", 1, 80), found("api", 2, 81))
    assert (names(state), refused) == (["api", "web"], [])
    again, _ = report(state, found("web", 1, 80), found("api", 2, 81))
    assert again is state
    state, _ = report(state, found("api", 2, 81))
    assert names(state) == ["api"]


def test_a_source_that_is_not_named_keeps_what_it_had() -> None:
    state, _ = report(mesh(), found("web", 1), found("api", 2, source="systemd"), sources=("files", "systemd"))
    state, _ = report(state, sources=("files",))
    assert names(state) == ["api"]
    state, _ = report(state, found("web", 1), sources=())
    assert names(state) == ["api", "web"]
    gone = FoundRequest([], [], [ResourceName("Workload", "web", "shop"), ResourceName("Workload", "none", "shop")])
    state = adopt(state, "a", gone)[0].state
    assert names(state) == ["api"]
    state, refused = report(state, found("other", 2), sources=("files",))
    assert refused == ["shop/other: uid 2 of node a is already that of workload shop/api; give one of them another"]
    assert names(state) == ["api"]


@pytest.mark.parametrize(
    ("discovery", "wanted", "why"),
    [
        (None, found("web"), "namespace shop is not among those the node may use (none)"),
        (Discovery(("bank",)), found("web"), "namespace shop is not among those the node may use (bank)"),
        (Discovery(("shop",), ("api",)), found("web"), "service account web is not among those"),
        (SHOP, found("web", address="10.9.9.9"), "address 10.9.9.9 is in no network from which"),
    ],
)
def test_what_the_operator_does_not_let_it_is_refused(discovery: Discovery | None, wanted: Workload, why: str) -> None:
    state = change(State("i"), [node(discovery=discovery)]).state
    after, refused = report(state, wanted)
    assert names(after) == []
    assert why in refused[0]
    assert "spec.discovery of node a" in refused[0]


@pytest.mark.parametrize("discovery", [Discovery(("shop",)), Discovery(("*",), ("*",)), SHOP])
def test_what_the_operator_lets_it_is_registered(discovery: Discovery) -> None:
    state = change(State("i"), [node(discovery=discovery)]).state
    assert report(state, found("web"))[1] == []


def test_addresses_are_those_of_the_allowed_networks() -> None:
    assert report(mesh(), found("web", address="172.17.3.4"))[1] == []


def test_only_what_a_node_found_can_be_gone() -> None:
    state = mesh(workload("own", uid=9), node("b", address="10.0.0.2"), found("theirs", on="b"))
    gone = FoundRequest([], [], [ResourceName("Workload", n, "shop") for n in ("own", "theirs")])
    assert adopt(state, "a", gone)[0].state is state


def test_what_an_operator_applied_stands() -> None:
    state = mesh(workload("web", uid=9))
    after, refused = report(state, found("web"), found("api", 2))
    assert after.objects[Key("Workload", "shop", "web")] == workload("web", uid=9)
    assert names(after) == ["api", "web"]
    assert "shop/web: there is a workload shop/web already: an operator applied it" in refused[0]


def test_an_operator_can_take_a_workload_over() -> None:
    state, _ = report(mesh(), found("web"))
    state = change(state, [workload("web", uid=1)]).state
    after, refused = report(state, found("web"))
    assert after is state
    assert "an operator applied it" in refused[0]


def test_another_nodes_workload_stands() -> None:
    state = mesh(node("b", address="10.0.0.2"), found("web", on="b"))
    _, refused = report(state, found("web"))
    assert "node b registered it" in refused[0]


def test_one_conflict_keeps_no_other_out() -> None:
    state = mesh(workload("old", uid=1))
    after, refused = report(state, found("web", 1), found("api", 2, 80), found("more", 3, 80), found("last", 4))
    assert names(after) == ["api", "last", "old"]
    assert [r.partition(":")[0] for r in refused] == ["shop/web", "shop/more"]


def test_the_one_registered_first_stays() -> None:
    state, _ = report(mesh(), found("web", 1, 80))
    after, refused = report(state, found("a", 1, 80), found("web", 1, 80))
    assert names(after) == ["web"]
    assert refused[0].startswith("shop/a: uid 1 of node a is already that of workload shop/web")


def test_two_may_swap_what_they_claim() -> None:
    state, _ = report(mesh(), found("web", 1, 80), found("api", 2, 81))
    after, refused = report(state, found("web", 2, 81), found("api", 1, 80))
    assert refused == []
    assert after.objects[Key("Workload", "shop", "web")] == found("web", 2, 81)


def test_an_operators_labels_stay() -> None:
    key = Key("Workload", "shop", "web")
    state, _ = report(mesh(), found("web", tier="1", drop="me"))
    state = label(state, key, {"mesh": "on", "tier": "2", "drop": None}).state
    after, _ = report(state, found("web", tier="1", drop="me"))
    assert after is state
    after, _ = report(state, found("web", tier="3", drop="me", zone="x"))
    assert after.objects[key].metadata.labels == {"app": "web", "mesh": "on", "tier": "2", "zone": "x"}


def test_a_node_speaks_only_for_itself() -> None:
    state = mesh(node("b", address="10.0.0.2"))
    _, refused = report(state, found("web", on="b"), workload("api"), node("c"))
    assert len(refused) == 3
    _, told = adopt(state, "a", FoundRequest([msgspec.Raw(b'{"kind":"Workload","metadata":{"name":"!"}}')], []))
    assert told[0].why.startswith("cannot be read:")


def test_taking_the_right_away_takes_the_workloads_away() -> None:
    state, _ = report(mesh(workload("own", uid=9)), found("web", 1), found("api", 2, account="api"))
    narrower = node(discovery=Discovery(("shop",), ("api",)))
    state = change(state, [narrower], outlawed(state, [narrower])).state
    assert names(state) == ["api", "own"]
    left_out = node(discovery=None)
    assert outlawed(state, [left_out]) == []
    assert change(state, [left_out]).state.node("a") == narrower


def test_a_node_is_deleted_with_what_it_found() -> None:
    state, _ = report(mesh(), found("web", 1))
    key = Key("Node", "", "a")
    assert change(state, [], [key, *orphans(state, [key])]).state.objects.get(key) is None
    with pytest.raises(RegistryError, match="still has workloads: shop/own"):
        change(mesh(workload("own")), [], [key])


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(1, 4), st.integers(80, 83)), max_size=8))
def test_a_report_never_fails_whatever_it_claims(rows: list[tuple[str, int, int]]) -> None:
    state, _ = report(mesh(workload("c", uid=3)), found("a", 1, 80), found("b", 2, 81))
    workloads = [found(name, uid, port) for name, uid, port in rows]
    after, refused = report(state, *workloads)
    told = {r.partition(":")[0].removeprefix("shop/") for r in refused}
    assert {n for n, _, _ in rows} == (set(names(after)) - {"c"}) | (told & {n for n, _, _ in rows})
    again, second = report(after, *workloads)
    assert again is after
    assert sorted(r.partition(":")[0] for r in second) == sorted(r.partition(":")[0] for r in refused)


def test_refusals_say_who() -> None:
    state = mesh()
    _, refused = adopt(state, "a", FoundRequest([msgspec.Raw(encode(found("web", namespace="bank")))], []))
    assert [(r.namespace, r.name) for r in refused] == [("bank", "web")]
    assert isinstance(refused[0], NotRegistered)
