"""Keys at rest: sealed they are nothing that anybody could use, and without the secret the agent says so."""

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.node.files import StateError
from agent.node.seal import CREDENTIAL, Seal, find, is_sealed
from agent.node.state import Membership, State
from ca import x509
from tests.agent.certs import TestRoot

WEB = "spiffe://shop.example/ns/shop/sa/web"
NODE = "spiffe://shop.example/node/n1"
SECRET = bytes(range(32))


def seal(secret: bytes = SECRET) -> Seal:
    return Seal(secret, "the test's secret")


@pytest.fixture
def sealed(tmp_path) -> State:
    """A node's state, written with a seal."""
    root, state = TestRoot(), State(tmp_path / "agent", seal())
    state.save_node_leaf(root.leaf(NODE))
    state.save_leaf(root.leaf(WEB))
    state.save_roots(root.pem)
    state.save_membership(Membership("n1", "shop.example", "10.0.0.1:15012"))
    return state


def keys(state: State) -> list[Path]:
    return [state.directory / "node.pem", *(state.directory / "leaves").iterdir()]


@given(st.binary(max_size=5000), st.text("abc/.", max_size=20))
def test_what_is_closed_opens_with_the_same_secret_and_name(body, name):
    closed = seal().close(name, body)
    assert is_sealed(closed)
    assert seal().open(name, closed) == body
    assert seal().close(name, body) != closed
    for other, where in ((seal(SECRET[::-1]), name), (seal(), name + "x")):
        with pytest.raises(StateError, match="another secret than that of the test's secret"):
            other.open(where, closed)


@given(st.binary(max_size=200))
def test_garbage_opens_nothing(garbage):
    with pytest.raises((StateError, ValueError)):
        seal().open("node.pem", b"sealed 1 aes-256-gcm\n" + garbage)


def test_nothing_on_disk_reads_as_a_key(sealed):
    assert len(keys(sealed)) == 2
    for path in keys(sealed):
        data = path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert b"PRIVATE KEY" not in data
        with pytest.raises(x509.CertificateError):
            x509.load_key(data)
    again = State(sealed.directory, seal())
    assert again.node_leaf().uri == NODE
    assert list(again.leaves()) == [WEB]


@pytest.mark.parametrize("other", [None, Seal(SECRET[::-1], "another")], ids=["none", "another"])
def test_without_the_secret_it_is_refused_and_nothing_is_set_aside(sealed, other):
    before = {path: path.read_bytes() for path in keys(sealed)}
    again = State(sealed.directory, other)
    for read in (again.node_leaf, again.leaves):
        with pytest.raises(StateError, match=r"sealed.*culvert agent join --force TOKEN"):
            read()
    assert {path: path.read_bytes() for path in keys(sealed)} == before
    assert again.problems == []
    assert State(sealed.directory, seal()).node_leaf().uri == NODE


def test_a_damaged_file_is_damaged_and_not_anothers(sealed):
    path = sealed.directory / "node.pem"
    data = path.read_bytes()
    path.write_bytes(data[:-9] + b"A" + data[-8:])
    again = State(sealed.directory, seal())
    assert again.node_leaf() is None
    assert "damaged" in again.problems[0]


def test_what_was_plain_is_sealed_when_there_is_a_secret(tmp_path):
    root, plain = TestRoot(), State(tmp_path / "agent")
    plain.save_node_leaf(root.leaf(NODE))
    plain.save_leaf(root.leaf(WEB))
    assert plain.seal_all() == 0
    assert b"PRIVATE KEY" in (plain.directory / "node.pem").read_bytes()
    state = State(plain.directory, seal())
    assert state.seal_all() == 2
    assert state.seal_all() == 0
    assert not any(b"PRIVATE KEY" in path.read_bytes() for path in keys(state))
    assert (state.node_leaf().uri, list(state.leaves())) == (NODE, [WEB])


def test_where_the_secret_comes_from(tmp_path):
    directory = tmp_path / "credentials"
    directory.mkdir()
    environ = {"CREDENTIALS_DIRECTORY": str(directory)}
    assert find("", {}) is None
    assert find("", environ) is None  # the service has credentials, and none for us
    (directory / CREDENTIAL).write_bytes(SECRET)
    given_by_systemd = find("", environ)
    assert given_by_systemd is not None
    assert given_by_systemd.open("x", seal().close("x", b"key")) == b"key"
    (tmp_path / "mine").write_bytes(os.urandom(32))
    own = find(str(tmp_path / "mine"), environ)
    assert own is not None
    with pytest.raises(StateError):
        own.open("x", seal().close("x", b"key"))
    with pytest.raises(StateError, match="cannot be read: No such file"):
        find(str(tmp_path / "missing"), environ)
    (directory / CREDENTIAL).write_bytes(b"short")
    with pytest.raises(StateError, match=r"the credential culvert-seal: a secret of 5 bytes.*/dev/urandom"):
        find("", environ)
