"""What the disk remembers to be captured, before any agent runs."""

import errno

import immutables
import pytest

from agent.node.boot import lay, remembered
from agent.node.enrolment import HOST, NO_CGROUP, Ports
from agent.node.state import Membership, State
from agent.node.view import MeshView
from agent.settings import AgentSettings
from ca.resources.workload import Match
from redirect.desired import Capture, Desired, Hold, Recognise, Shelter
from redirect.kernel import Kernel
from redirect.netlink import CaptureError
from tests.agent.views import mesh, node, view, workload
from tests.redirect.conftest import namespace
from tests.redirect.traffic import REFUSED, Server, reached


def seen() -> MeshView:
    v = view(mesh(), node("n1"), workload("web"), workload("unit"), workload("new"), workload("pod"))
    matches = {
        "web": Match(uid=7),
        "unit": Match(cgroup="no.slice/such.service"),
        "new": Match(uid=8),
        "pod": Match(netns="culvert-no-such"),
    }
    return MeshView(v.snapshot, immutables.Map({k: matches[k.name] for k in v.snapshot.workloads}), "i")


@pytest.fixture
def settings(tmp_path) -> AgentSettings:
    return AgentSettings(state_dir=tmp_path, worker_user="64990")


@pytest.fixture
def state(tmp_path) -> State:
    made = State(tmp_path)
    made.save_membership(Membership("n1", "shop.example", "10.0.0.1:15012"))
    made.views.keep([], seen())
    made.save_ports(Ports({"shop/web": 15100, "shop/unit": 15101}, {"shop/pod": "/run/netns/culvert-no-such"}, 15101))
    return made


def test_who_was_captured_and_nobody_else(settings, state):
    found = remembered(settings)
    assert set(found.tables) == {HOST, "/run/netns/culvert-no-such"}
    host = found.tables[HOST]
    assert [(c.workload, c.recognise) for c in host.captures] == [
        ("shop/unit", Recognise(cgroup=(2, NO_CGROUP - 15101))),
        ("shop/web", Recognise(uid=7)),
    ]
    assert 64990 in host.agent_uids
    assert host.mesh == frozenset(seen().snapshot.by_endpoint)


def test_containers_and_namespaces_are_held_as_they_come_out(settings, state, tmp_path):
    """They do not exist yet; their bridges and addresses are known."""
    ports = state.ports()
    assert remembered(settings).tables[HOST].hold == Hold()  # the pod has no address
    state.save_ports(Ports(ports.outbound, ports.namespaces, 15101, {"shop/pod": ("podman0",)}))
    (pod,) = (w for w in seen().snapshot.workloads.values() if w.title == "shop/pod")
    doors = frozenset(("podman0", port) for port in pod.spec.ports)
    behind = Hold(bridges=frozenset({"podman0"}), shelter=Shelter(behind=doors), lobby=Shelter(behind=doors))
    assert remembered(settings).tables[HOST].hold == behind
    # With nobody else on this machine as well.
    state.save_ports(Ports({}, ports.namespaces, 15101, {"shop/pod": ("podman0",)}))
    assert remembered(settings).tables[HOST].hold == behind
    serving = view(mesh(), node("n1"), workload("pod", address="10.0.0.9", ports=[80]))
    matches = immutables.Map({k: Match(netns="culvert-no-such") for k in serving.snapshot.workloads})
    other = State(tmp_path / "other")
    other.save_membership(Membership("n1", "shop.example", "10.0.0.1:15012"))
    other.save_ports(Ports({}, ports.namespaces))
    other.views.keep([], MeshView(serving.snapshot, matches, "i"))
    settings = AgentSettings(state_dir=other.directory, worker_user="64990")
    assert remembered(settings).tables[HOST].hold == Hold(
        inside=frozenset({"10.0.0.9"}),
        shelter=Shelter(frozenset({("10.0.0.9", 80)})),
        lobby=Shelter(frozenset({("10.0.0.9", 80)})),
    )


@pytest.mark.parametrize("can", [True, False])
def test_where_the_kernel_cannot_be_told_of_the_agent_all_is_closed(monkeypatch, can):
    def refuse(self, marks):
        raise CaptureError(errno.EOPNOTSUPP, "the kernel cannot tie rules to the agent's life")

    if not can:
        monkeypatch.setattr(Kernel, "appear", refuse)
    table = Desired((Capture("shop/open", Recognise(uid=7), 15100, open=True),), frozenset({("127.0.0.1", 80)}))
    with namespace() as name, Server(name, "application", "127.0.0.1", 80):
        assert lay({f"/run/netns/{name}": table}) == (["shop/open"], [])
        assert reached(name, "127.0.0.1", 80, uid=7) == ("application" if can else REFUSED)


def test_a_namespace_that_is_not_there_needs_no_guard(settings, state):
    tables = remembered(settings).tables
    del tables[HOST]  # never in the host's own namespace
    assert lay(tables) == ([], [])


def test_nothing_to_hold(settings, tmp_path, state):
    state.set_capture_off(True)
    assert "switched off" in remembered(settings).nothing
    state.set_capture_off(False)
    state.save_ports(Ports())
    assert "nobody was captured" in remembered(settings).nothing
    empty = AgentSettings(state_dir=tmp_path / "other", worker_user="64990")
    assert "has not joined" in remembered(empty).nothing
