import os
import socket
import threading
from pathlib import Path

import pytest

from redirect.namespace import NamespaceError, in_namespace


def _current() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def test_function_runs_inside_and_the_caller_stays_outside(netns: str) -> None:
    before = _current()
    inside = in_namespace(netns, _current)
    assert inside == os.stat(f"/run/netns/{netns}").st_ino
    assert inside != before
    assert _current() == before


def test_a_path_names_the_same_namespace(netns: str) -> None:
    assert in_namespace(f"/run/netns/{netns}", _current) == in_namespace(netns, _current)


def test_each_call_has_a_thread_that_ends(netns: str) -> None:
    first = in_namespace(netns, threading.current_thread)
    second = in_namespace(netns, threading.current_thread)
    assert first is not second
    assert not first.is_alive()
    assert not second.is_alive()


def test_a_socket_made_inside_belongs_there(netns: str) -> None:
    def bound() -> socket.socket:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 1))
        return sock

    # The same port twice, since they are two machines as far as ports go.
    with in_namespace(netns, bound) as inside, socket.socket() as outside:
        outside.bind(("127.0.0.1", 0))
        assert inside.getsockname() == ("127.0.0.1", 1)


def test_exceptions_pass_through(netns: str) -> None:
    with pytest.raises(ZeroDivisionError):
        in_namespace(netns, lambda: 1 // 0)


def test_missing_namespace_names_itself_and_the_next_step() -> None:
    with pytest.raises(NamespaceError, match=r"/run/netns/no-such: No such file.*ip netns list"):
        in_namespace("no-such", _current)


def test_a_file_that_is_no_namespace(tmp_path: Path) -> None:
    ordinary = tmp_path / "file"
    ordinary.touch()
    with pytest.raises(NamespaceError, match="not a network namespace"):
        in_namespace(str(ordinary), _current)
