import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ca.registry
from ca.identity import WorkloadIdentity
from ca.registry import MESH, RegistryError, State, change, label, restore, since
from ca.resources.kinds import Resource
from ca.resources.mesh import Mesh, MeshSpec, Mode
from ca.resources.metadata import Key, Metadata
from ca.resources.node import Node, NodeSpec
from ca.resources.workload import Match, Workload, WorkloadSpec
from ca.store import Contents, StoredResource


def node(name: str, address: str = "", port: int = 15008) -> Node:
    return Node(metadata=Metadata(name), spec=NodeSpec(address, port))


def workload(name: str, on: str = "a", **spec: object) -> Workload:
    fields = {"node": on, "service_account": name.partition("/")[2] or name, **spec}
    return Workload(metadata=Metadata(name, "shop"), spec=msgspec.convert(_camel(fields), WorkloadSpec))


def _camel(fields: dict[str, object]) -> dict[str, object]:
    return {k.replace("service_account", "serviceAccount"): msgspec.to_builtins(v) for k, v in fields.items()}


def mesh(domain: str = "shop.example", mode: Mode = Mode.PERMISSIVE) -> Mesh:
    return Mesh(metadata=Metadata("mesh"), spec=MeshSpec(domain, mode=mode))


@pytest.fixture
def state() -> State:
    return change(State("first"), [mesh(), node("a", "10.0.0.1"), node("b"), workload("web", ports=[80])]).state


def refused(state: State, put: list[Resource], delete: list[Key] | None = None) -> str:
    with pytest.raises(RegistryError) as e:
        change(state, put, delete or [])
    return str(e.value)


def test_a_change_makes_the_next_revision_and_its_batch(state: State) -> None:
    outcome = change(state, [node("c")], [Key("Node", "", "b")])
    assert outcome.state.revision == 2
    assert (outcome.put, outcome.deleted) == ((Key("Node", "", "c"),), (Key("Node", "", "b"),))
    assert outcome.batch is not None
    assert (outcome.batch.revision, outcome.batch.delete) == (2, outcome.deleted)
    assert [(r.key, r.revision) for r in outcome.batch.put] == [(Key("Node", "", "c"), 2)]
    assert state.node("b") is not None


def test_what_is_so_already_changes_nothing(state: State) -> None:
    outcome = change(state, [workload("web", ports=[80]), mesh()])
    assert outcome.state is state
    assert outcome.batch is None


def test_a_node_and_its_workload_may_arrive_together_and_leave_together(state: State) -> None:
    after = change(state, [workload("api", "c"), node("c")]).state
    gone = change(after, [], [Key("Node", "", "c"), Key("Workload", "shop", "api")]).state
    assert gone.objects == state.objects
    assert gone.hosted == state.hosted
    assert gone.claims == state.claims


def test_a_workload_needs_its_node(state: State) -> None:
    assert refused(change(state, [node("web-1")]).state, [workload("api", "web1")]) == (
        "workload shop/api: spec.node: there is no node web1; did you mean web-1?"
    )


def test_a_node_with_workloads_stays(state: State) -> None:
    assert refused(state, [], [Key("Node", "", "a")]) == (
        "node a: still has workloads: shop/web; delete or move them first"
    )


def test_what_is_not_there_cannot_be_deleted(state: State) -> None:
    assert refused(state, [], [Key("Workload", "shop", "wep")]) == (
        "workload shop/wep: there is none; did you mean workload shop/web?"
    )


def test_the_trust_domain_is_for_ever(state: State) -> None:
    assert refused(state, [mesh("other.example")]).startswith(
        "mesh mesh: spec.trustDomain: it is shop.example and cannot become other.example"
    )
    assert "cannot be deleted" in refused(state, [], [MESH])


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ({"match": Match(uid=5)}, {"match": Match(uid=5)}, "uid 5 of node a"),
        (
            {"match": Match(cgroup="/x.slice/y.service")},
            {"match": Match(cgroup="x.slice/y.service")},
            "cgroup /x.slice/y.service of node a",
        ),
        (
            {"match": Match(netns="blue")},
            {"match": Match(netns="/var/run/netns/blue")},
            "netns /run/netns/blue of node a",
        ),
        ({"address": "10.0.0.7", "ports": [90]}, {"address": "10.0.0.7", "ports": [90]}, "port 90 at 10.0.0.7"),
        ({"ports": [90]}, {"address": "10.0.0.1", "ports": [90]}, "port 90 at 10.0.0.1"),
        ({"ports": [90], "node": "b"}, {"ports": [90], "node": "b"}, "port 90 at node b"),
    ],
)
def test_a_place_belongs_to_one(state: State, one: dict[str, object], other: dict[str, object], what: str) -> None:
    expected = f"workload shop/y: {what} is already that of workload shop/x; give one of them another"
    assert refused(state, [workload("x", **one), workload("y", **other)]) == expected
    assert refused(change(state, [workload("x", **one)]).state, [workload("y", **other)]) == expected


def test_two_nodes_do_not_share_a_tunnel_port(state: State) -> None:
    assert refused(state, [node("b", "10.0.0.1")]) == (
        "node b: the tunnel port 15008 at 10.0.0.1 is already that of node a; give one of them another"
    )
    change(state, [node("b", "10.0.0.1", 15108)])


def test_places_may_be_swapped_in_one_change(state: State) -> None:
    one = change(state, [workload("x", match=Match(uid=1)), workload("y", match=Match(uid=2))]).state
    two = change(one, [workload("x", match=Match(uid=2)), workload("y", match=Match(uid=1))]).state
    assert two.matches("a") == {
        Key("Workload", "shop", "x"): Match(uid=2),
        Key("Workload", "shop", "y"): Match(uid=1),
    }


def test_workloads_move_with_the_address_of_their_node(state: State) -> None:
    before = change(
        state, [workload("api", "b", ports=[80]), workload("db", "a", address="10.0.0.9", ports=[80])]
    ).state
    assert "port 80 at 10.0.0.9 is already that of workload shop/db" in refused(before, [node("b", "10.0.0.9")])
    after = change(before, [node("b", "10.0.0.2")]).state
    assert "port 80 at 10.0.0.2" in refused(after, [workload("x", "a", address="10.0.0.2", ports=[80])])


def test_a_node_applied_without_address_keeps_the_one_from_join(state: State) -> None:
    assert change(state, [node("a")]).state is state
    assert change(state, [node("a", port=9)]).state.node("a") == node("a", "10.0.0.1", 9)


def test_labels_come_and_go(state: State) -> None:
    key = Key("Workload", "shop", "web")
    after = label(state, key, {"mesh": "on", "x": None}).state
    assert after.objects[key].metadata.labels == {"mesh": "on"}
    assert label(after, key, {"mesh": "on"}).batch is None
    assert label(after, key, {"mesh": None}).state.objects[key] == state.objects[key]
    with pytest.raises(RegistryError, match="workload shop/web: label mesh='a b'"):
        label(state, key, {"mesh": "a b"})
    with pytest.raises(RegistryError, match="workload shop/wob: there is none; did you mean"):
        label(state, Key("Workload", "shop", "wob"), {})


def test_who_hosts_an_identity(state: State) -> None:
    assert state.hosts("a", WorkloadIdentity("shop.example", "shop", "web"))
    assert not state.hosts("b", WorkloadIdentity("shop.example", "shop", "web"))
    assert not state.hosts("a", WorkloadIdentity("other.example", "shop", "web"))
    assert not state.hosts("a", WorkloadIdentity("shop.example", "shop", "api"))


def test_resume_from_elsewhere_is_a_reset(state: State) -> None:
    assert since(state, 1, "second").reset
    assert since(state, 2, "first").reset
    assert not since(state, 1, "first").reset
    assert not list(since(state, 1, "first").put)


names = st.sampled_from("abc")
_workloads = st.builds(
    workload,
    st.sampled_from("uvwxyz"),
    names,
    match=st.one_of(st.none(), st.builds(Match, uid=st.integers(0, 8))),
    ports=st.lists(st.integers(80, 84), max_size=2, unique=True),
    address=st.sampled_from(["", "10.0.0.7", "10.0.0.8"]),
)
_nodes = st.builds(node, names, st.sampled_from(["", "10.0.0.1", "10.0.0.2", "10.0.0.7"]))
_resources = st.one_of(_workloads, _nodes, st.builds(mesh, mode=st.sampled_from(Mode)))
_keys = st.one_of(
    st.builds(Key, st.just("Workload"), st.just("shop"), st.sampled_from("uvwxyz")),
    st.builds(Key, st.just("Node"), st.just(""), names),
)
_steps = st.lists(st.tuples(st.lists(_resources, max_size=4), st.lists(_keys, max_size=2)), max_size=25)


@settings(max_examples=300)
@given(_steps, st.integers(1, 30))
def test_deltas_on_a_replica_equal_the_whole_from_any_revision(
    steps: list[tuple[list[Resource], list[Key]]], kept: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ca.registry, "CHANGES_KEPT", kept)
        state = change(State("i"), [mesh(), node("a"), node("b"), node("c")]).state
        history = [State("i"), state]
        for put, delete in steps:
            try:
                outcome = change(state, put, delete)
            except RegistryError:
                continue
            assert (outcome.batch is None) == (outcome.state is state)
            if outcome.batch is not None:
                assert outcome.state.revision == state.revision + 1
                history.append(outcome.state)
                state = outcome.state
    for old in history:
        changes = since(state, old.revision, "i")
        assert changes.revision == state.revision
        replica = {} if changes.reset else dict(old.objects)
        replica |= {r.key: r for r in changes.put}
        for key in changes.delete:
            replica.pop(key, None)
        assert replica == dict(state.objects)
        assert changes.reset == (old.revision < state.compacted)


@settings(max_examples=300)
@given(_steps)
def test_what_was_stored_comes_back_with_the_same_indexes(steps: list[tuple[list[Resource], list[Key]]]) -> None:
    state, stored = State("i"), dict[Key, StoredResource]()
    for put, delete in [([mesh(), node("a"), node("b"), node("c")], []), *steps]:
        try:
            outcome = change(state, put, delete)
        except RegistryError:
            continue
        state = outcome.state
        if outcome.batch is not None:
            stored |= {r.key: r for r in outcome.batch.put}
            for key in outcome.batch.delete:
                del stored[key]
    log = [c for r in sorted(state.log) for c in state.log[r]]
    back = restore("i", Contents(state.revision, state.compacted, list(stored.values()), log))
    assert back == state
