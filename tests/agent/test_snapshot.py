"""The mesh view: changes applied one after another come to the same as all built at once."""

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from agent.snapshot import Snapshot
from ca.resources.mesh import Egress, Mesh, MeshSpec, Mode
from ca.resources.metadata import Key, Metadata, Selector
from ca.resources.node import Node, NodeSpec
from ca.resources.policy import MutualTls, PeerAuthentication, PeerAuthenticationSpec
from ca.resources.workload import Workload, WorkloadSpec
from tests.agent.views import mesh, node, workload

ADDRESSES = ["", "10.0.0.1", "10.0.0.2", "fd00::1"]
names = st.sampled_from(["a", "b", "c", "d"])
labels = st.sampled_from([{}, {"mesh": "on"}, {"mesh": "off"}, {"mesh": "on", "tier": "gold"}, {"tier": "gold"}])

meshes = st.builds(
    lambda selector, mode, egress: Mesh(Metadata("mesh"), MeshSpec("shop.example", Selector(selector), mode, egress)),
    st.sampled_from([{"mesh": "on"}, {"tier": "gold"}, {"mesh": "on", "tier": "gold"}, {}]),
    st.sampled_from(Mode),
    st.sampled_from(Egress),
)
nodes = st.builds(lambda n, a, p: Node(Metadata(n), NodeSpec(a, p)), names, st.sampled_from(ADDRESSES), st.just(15008))
workloads = st.builds(
    lambda name, space, marks, on, address, ports: Workload(
        Metadata(name, space, marks), WorkloadSpec(on, name, address, tuple(sorted(ports)))
    ),
    names,
    st.sampled_from(["shop", "bank"]),
    labels,
    names,
    st.sampled_from(ADDRESSES),
    st.sets(st.sampled_from([80, 443, 8080]), max_size=3),
)
policies = st.builds(
    lambda n, s, mode: PeerAuthentication(Metadata(n, s), PeerAuthenticationSpec(mtls=MutualTls(mode))),
    names,
    st.sampled_from(["", "shop"]),
    st.sampled_from(Mode),
)
put = st.lists(st.one_of(workloads, workloads, nodes, meshes, policies), max_size=6)
keys = st.one_of(
    st.builds(Key, st.just("Workload"), st.sampled_from(["shop", "bank"]), names),
    st.builds(Key, st.just("Node"), st.just(""), names),
    st.builds(Key, st.just("PeerAuthentication"), st.sampled_from(["", "shop"]), names),
)
deltas = st.lists(st.tuples(put, st.lists(keys, max_size=4)), max_size=12)


@settings(max_examples=settings.default.max_examples * 3)
@given(deltas)
def test_deltas_come_to_the_same_as_building_afresh(changes):
    view, before = Snapshot("a"), []
    kept: dict[Key, object] = {}
    for revision, (new, gone) in enumerate(changes, 1):
        before.append((view, facts(view)))
        view = view.apply(revision, new, gone)
        for key in gone:
            kept.pop(key, None)
        kept.update({resource.key: resource for resource in new})
        assert facts(view) == facts(Snapshot("a").apply(revision, kept.values(), ()))
        check(view)
    for old, as_it_was in before:
        assert facts(old) == as_it_was


def facts(view: Snapshot) -> dict[str, object]:
    """All that the view says, as plain values."""
    tables = ("nodes", "workloads", "here", "by_endpoint", "by_address")
    return {
        "revision": view.revision,
        "mesh": view.mesh,
        "policies": {space: dict(scope) for space, scope in view.policies.items() if scope},
        **{table: dict(getattr(view, table)) for table in tables},
    }


def check(view: Snapshot) -> None:
    """The indexes say what the objects say, looked at one by one."""
    enrolled = [w for w in view.workloads.values() if view.enrolled(w)]
    assert dict(view.here) == {w.key: w for w in enrolled if w.spec.node == "a"}
    for address in ADDRESSES[1:]:
        at = {w.key for w in enrolled if view.address(w) == address}
        assert view.by_address.get(address, frozenset()) == at
        for port in (80, 443, 8080):
            expected = sorted(w.key for w in enrolled if view.address(w) == address and port in w.spec.ports)
            assert [w.key for w in view.at(address, port)] == expected


def test_a_node_that_moves_takes_its_workloads_along():
    web, boxed = workload("web"), workload("boxed", address="10.0.7.7")
    view = Snapshot("n1").apply(1, [mesh(), node("n1", ""), web, boxed], ())
    assert view.at("10.0.0.1", 80) == ()
    assert view.local() == [boxed, web]
    joined = view.apply(2, [node("n1", "10.0.0.1")], ())
    assert joined.at("10.0.0.1", 80) == (web,)
    moved = joined.apply(3, [node("n1", "10.0.0.9")], ())
    assert moved.at("10.0.0.1", 80) == ()
    assert moved.at("10.0.0.9", 80) == (web,)
    gone = moved.apply(4, [], [Key("Node", "", "n1")])
    assert gone.at("10.0.0.9", 80) == ()
    assert gone.at("10.0.7.7", 80) == (boxed,)
    assert joined.at("10.0.0.1", 80) == (web,)


def test_another_selector_enrols_others():
    web = workload("web")
    view = Snapshot("n1").apply(1, [mesh(), node("n1"), web], ())
    assert view.local() == [web]
    other = mesh()
    other = replace(other, spec=replace(other.spec, enrolment=Selector({"mesh": "other"})))
    assert view.apply(2, [other], ()).local() == []
    assert dict(view.apply(2, [other], ()).by_endpoint) == {}


def test_a_change_shares_what_it_does_not_change():
    view = Snapshot("n1").apply(
        1, [mesh(), node("n1"), *(workload(f"w{i}", ports=(1000 + i,)) for i in range(100))], ()
    )
    after = view.apply(2, [workload("w5", ports=(2005,))], ())
    assert after.nodes is view.nodes
    assert after.mesh is view.mesh
    key = Key("Workload", "shop", "w6")
    assert after.workloads[key] is view.workloads[key]
    assert after.at("10.0.0.1", 1005) == ()
    assert view.at("10.0.0.1", 2005) == ()


def test_put_wins_over_delete_of_the_same_object():
    web = workload("web")
    view = Snapshot("n1").apply(1, [mesh(), node("n1"), web], [web.key])
    assert view.local() == [web]
