import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.node.view import PIECE, Change, Intake, MeshView, whole
from agent.snapshot import Snapshot
from ca.contract import ContractError, Delta, LocalMatch, Private, ResourceName
from ca.resources.kinds import KINDS, Resource, decode, encode
from ca.resources.mesh import Mode
from ca.resources.metadata import Key, Metadata
from ca.resources.policy import (
    Action,
    AuthorizationPolicy,
    AuthorizationPolicySpec,
    MutualTls,
    PeerAuthentication,
    PeerAuthenticationSpec,
    Rule,
)
from ca.resources.revocation import Revocation, RevocationSpec
from ca.resources.workload import Match
from tests.agent.views import delta, mesh, node, view, workload

WEB = Key("Workload", "shop", "web")


def objects(change: Change) -> list:
    return [decode(raw) for raw in change.put]


def test_a_delta_becomes_a_change():
    intake = Intake(view())
    change = intake.delta(delta(2, mesh(), node("n1"), workload("web")))
    assert change.view.snapshot.revision == 2
    assert [w.title for w in change.view.snapshot.local()] == ["shop/web"]
    assert objects(change) == [mesh(), node("n1"), workload("web")]


def test_what_changes_nothing_is_not_told_again():
    intake = Intake(view(mesh(), workload("web")))
    change = intake.delta(delta(3, workload("web"), delete=[Key("Workload", "shop", "none")]))
    assert (change.put, change.delete, change.view.snapshot.revision) == ((), (), 3)


def test_pieces_become_one_change():
    intake = Intake(view(mesh(), workload("web")))
    assert intake.delta(delta(2, workload("a"), more=True)) is None
    assert intake.delta(delta(2, delete=[WEB], more=True)) is None
    assert set(intake.view.snapshot.workloads) == {WEB}
    change = intake.delta(delta(2, workload("b")))
    assert objects(change) == [workload("a"), workload("b")]
    assert change.delete == (ResourceName("Workload", "web", "shop"),)


def test_deleted_in_one_piece_and_put_in_the_next():
    intake = Intake(view(mesh()))
    intake.delta(delta(2, workload("web"), more=True))
    intake.delta(delta(2, delete=[WEB], more=True))
    change = intake.delta(delta(2, workload("web", ports=[81])))
    assert objects(change) == [workload("web", ports=[81])]
    assert change.delete == ()


def test_reset_tells_only_the_difference():
    intake = Intake(view(mesh(), node("n1"), workload("web"), workload("old")))
    assert intake.delta(delta(1, mesh(), reset=True, more=True, incarnation="i2")) is None
    change = intake.delta(delta(1, node("n1"), workload("web"), workload("new"), incarnation="i2"))
    assert objects(change) == [workload("new")]
    assert change.delete == (ResourceName("Workload", "old", "shop"),)
    assert (change.view.snapshot.revision, change.view.incarnation) == (1, "i2")


def test_a_session_that_ended_half_way_leaves_nothing():
    intake = Intake(view(mesh(), workload("web")))
    intake.delta(delta(2, workload("a"), reset=True, more=True))
    intake.restart()
    change = intake.delta(delta(2, workload("b")))
    assert objects(change) == [workload("b")]
    assert set(change.view.snapshot.workloads) == {WEB, workload("b").key}


def test_private_waits_for_its_delta():
    intake = Intake(view(mesh()))
    assert intake.private(Private(2, [LocalMatch("shop", "web", Match(uid=7))])) is None
    assert not intake.view.matches
    change = intake.delta(delta(2, workload("web")))
    assert dict(change.view.matches) == {WEB: Match(uid=7)}
    change = intake.private(Private(2, []))
    assert not change.view.matches


def test_private_does_not_overtake_a_delta_in_pieces():
    intake = Intake(view(mesh()))
    intake.delta(delta(2, workload("web"), more=True))
    assert intake.private(Private(1, [LocalMatch("shop", "web", Match(uid=7))])) is None
    assert dict(intake.delta(delta(2)).view.matches) == {WEB: Match(uid=7)}


def test_objects_of_a_newer_centre():
    intake = Intake(view())
    change = intake.delta(Delta(2, put=[msgspec.Raw(b'{"kind":"Later","spec":1}')]))
    assert change.put == ()
    with pytest.raises(ContractError, match="cannot be read"):
        intake.delta(Delta(3, put=[msgspec.Raw(b'{"kind":"Workload"}')]))


def test_a_new_worker_gets_the_whole_view_and_the_revision_last():
    v = view(mesh(), *(workload(f"w{i}") for i in range(PIECE + 1)), revision=9)
    messages = list(whole(v))
    assert [m.reset for m in messages] == [True, False, False]
    assert [m.revision for m in messages] == [0, 0, 9]
    snapshot = Snapshot("n1")
    for m in messages:
        snapshot = snapshot.apply(m.revision, [decode(raw) for raw in m.put], ())
    assert snapshot == v.snapshot
    assert list(whole(MeshView(Snapshot("n1")))) == [messages[-1].__class__(0, reset=True)]


edits = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcd"), st.booleans(), max_size=4),
        st.sets(st.sampled_from("abcd")),
        st.booleans(),
        st.booleans(),
    ),
    max_size=12,
)


@given(edits)
def test_a_follower_of_changes_ends_with_the_same_view(steps):
    """Whatever the cut and however often the centre starts over, put and delete lead to the view itself."""
    intake = Intake(view(mesh()))
    follower = intake.view.snapshot
    truth = {mesh().key: mesh()}
    for revision, (put, delete, reset, more) in enumerate(steps, 2):
        if reset:
            truth = {}
        deleted = [Key("Workload", "shop", n) for n in delete]
        for key in deleted:
            truth.pop(key, None)
        for name, enrolled in put.items():
            w = workload(name, enrolled=enrolled)
            truth[w.key] = w
        resources = [workload(n, enrolled=e) for n, e in put.items()]
        change = intake.delta(delta(revision, *resources, delete=deleted, reset=reset, more=more))
        assert (change is None) == more
        if change:
            gone = [Key(d.kind, d.namespace, d.name) for d in change.delete]
            follower = follower.apply(change.view.snapshot.revision, objects(change), gone)
            # A mesh that a reset took away stays in the follower until another comes: it is never really absent.
            assert follower.workloads == change.view.snapshot.workloads
            assert {r.key: r for r in change.view.resources()} == truth


EVERY_KIND: dict[str, Resource] = {
    "Workload": workload("web"),
    "Node": node("n2"),
    "Mesh": mesh(),
    "AuthorizationPolicy": AuthorizationPolicy(
        Metadata("none", "shop"), AuthorizationPolicySpec(action=Action.DENY, rules=(Rule(),))
    ),
    "Revocation": Revocation(Metadata("stolen"), RevocationSpec(serials=("1f",))),
    "PeerAuthentication": PeerAuthentication(Metadata("strict"), PeerAuthenticationSpec(MutualTls(Mode.STRICT))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_is_lost_on_its_way_to_a_worker(kind: str) -> None:
    """Neither what a change brings or takes away, nor what a new worker (or a restarted agent) begins with."""
    resource = EVERY_KIND[kind]
    intake = Intake(view(mesh()))
    intake.delta(delta(2, resource))
    assert intake.view.get(resource.key) == resource
    assert resource in list(intake.view.resources())
    assert encode(resource) in [data for part in whole(intake.view) for data in part.put]
    if kind != "Mesh":
        gone = intake.delta(delta(3, delete=[resource.key]))
        assert gone is not None
        assert [(n.kind, n.namespace, n.name) for n in gone.delete] == [resource.key]
        assert resource not in list(intake.view.resources())
