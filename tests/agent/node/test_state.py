import os
import stat
from pathlib import Path

import pytest
from cryptography import x509

from agent.node.enrolment import Ports
from agent.node.files import StateError
from agent.node.state import Membership, State
from ca.resources.workload import Match
from tests.agent.certs import TestRoot
from tests.agent.views import mesh, node, view, workload

WEB = "spiffe://shop.example/ns/shop/sa/web"


@pytest.fixture
def root():
    return TestRoot()


@pytest.fixture
def state(tmp_path):
    return State(tmp_path / "agent")


VIEW = view(mesh(), node("n1"), workload("web"), revision=7, matches={"web": Match(uid=7)})


def files(state: State) -> list[Path]:
    return [p for p in state.directory.rglob("*") if p.is_file()]


def fill(state: State, root: TestRoot) -> None:
    state.save_membership(Membership("n1", "shop.example", "10.0.0.1:15012"))
    state.save_node_leaf(root.leaf("spiffe://shop.example/node/n1"))
    state.save_roots(root.pem)
    state.save_leaf(root.leaf(WEB))
    state.views.keep([], VIEW)
    state.save_ports(Ports({"shop/web": 15100}, {"shop/db": "/run/netns/db"}, 15100))


def test_a_new_state_is_empty(state):
    assert (state.membership(), state.node_leaf(), state.roots(), state.views.load("n1")) == (None, None, None, None)
    assert (state.leaves(), state.ports(), state.capture_off()) == ({}, Ports(), False)
    assert state.problems == []


def test_everything_comes_back(state, root):
    fill(state, root)
    again = State(state.directory)
    assert again.membership() == Membership("n1", "shop.example", "10.0.0.1:15012")
    assert again.node_leaf().uri == "spiffe://shop.example/node/n1"
    assert again.roots() == root.pem
    assert list(again.leaves()) == [WEB]
    assert again.views.load("n1") == view(
        mesh(), node("n1"), workload("web"), revision=7, matches={"web": Match(uid=7)}
    )
    assert again.ports() == Ports({"shop/web": 15100}, {"shop/db": "/run/netns/db"}, 15100)
    assert again.problems == []


def test_files_are_for_the_owner_only(state, root):
    before = os.umask(0)
    try:
        fill(state, root)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(p.stat().st_mode) for p in files(state)} == {0o600}
    assert stat.S_IMODE(state.directory.stat().st_mode) == 0o700


def test_pem_files_are_read_by_other_programs(state, root):
    fill(state, root)
    assert x509.load_pem_x509_certificates((state.directory / "node.pem").read_bytes())


READS = {
    "membership.json": lambda s: s.membership(),
    "node.pem": lambda s: s.node_leaf(),
    "roots.pem": lambda s: s.roots(),
    "view.json": lambda s: s.views.load("n1"),
    "ports.json": lambda s: s.ports() if s.ports() != Ports() else None,
    "leaves": lambda s: s.leaves() or None,
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("harm", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_file_is_set_aside_and_reported(state, root, name, harm):
    fill(state, root)
    path = next((state.directory / "leaves").iterdir()) if name == "leaves" else state.directory / name
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[: len(data) // 2],
            "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
            "empty": b"",
            "foreign": b"{}",
        }[harm]
    )
    again = State(state.directory)
    assert READS[name](again) is None
    (problem,) = again.problems
    assert path.name in problem
    assert path.with_name(path.name + ".damaged").exists()
    fill(again, root)
    assert READS[name](State(state.directory)) is not None


def test_a_well_written_file_of_the_wrong_content_is_set_aside(state):
    state.save_roots(b"no certificate")
    assert State(state.directory).roots() is None


def test_what_a_crash_left_beside_is_removed(state, root):
    state.save_roots(root.pem)
    (state.directory / "roots.pem.new").write_bytes(b"half")
    again = State(state.directory)
    assert again.roots() == root.pem
    assert not (state.directory / "roots.pem.new").exists()


def test_capture_off_is_remembered(state):
    state.set_capture_off(True)
    assert State(state.directory).capture_off()
    state.set_capture_off(False)
    state.set_capture_off(False)
    assert not state.capture_off()


def test_forgetting(state, root):
    fill(state, root)
    state.forget_leaf(WEB)
    state.forget_leaf(WEB)
    assert state.leaves() == {}
    state.forget_all()
    assert files(state) == []


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="state_dir"):
        State(tmp_path / "file" / "agent")
