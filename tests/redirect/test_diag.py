"""Sockets as the real kernel lists them, and their end."""

import os
import socket
import struct
import subprocess
import sys

import pytest

from redirect.diag import ESTABLISHED, LISTEN, Sock, Sockets
from redirect.namespace import in_namespace
from redirect.origdst import SO_MARK
from tests.redirect.traffic import as_user, reached, tcp_pair


def _find(sockets: Sockets, **facts: object) -> list[Sock]:
    return [s for s in sockets.listed() if all(getattr(s, k) == v for k, v in facts.items())]


def _listening(netns: str, address: str, mark: int = 0, uid: int = 0) -> socket.socket:
    def make() -> socket.socket:
        as_user(uid)
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("=I", mark))
        sock.bind((address, 0))
        sock.listen()
        return sock

    return in_namespace(netns, make)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_socket_is_told_with_its_owner_and_mark(netns: str, address: str) -> None:
    with _listening(netns, address, 0xC0170001, 64123) as listening, Sockets(netns) as sockets:
        (found,) = sockets.listed(1 << LISTEN)
        assert found.local == listening.getsockname()[:2]
        assert (found.uid, found.mark, found.state) == (64123, 0xC0170001, LISTEN)
        assert found.inode == os.fstat(listening.fileno()).st_ino


def test_both_ends_of_a_connection_know_each_other(netns: str) -> None:
    with _listening(netns, "127.0.0.1") as listening, Sockets(netns) as sockets:
        client, accepted = tcp_pair(netns, listening)
        with client, accepted:
            (near,) = _find(sockets, local=client.getsockname(), state=ESTABLISHED)
            (far,) = _find(sockets, local=near.remote, remote=near.local)
            assert far.inode == os.fstat(accepted.fileno()).st_ino


def test_a_mapped_address_is_plain(netns: str) -> None:
    with _listening(netns, "::") as listening, Sockets(netns) as sockets:
        port = listening.getsockname()[1]
        with in_namespace(netns, lambda: socket.create_connection(("127.0.0.1", port))) as client:
            (far,) = _find(sockets, remote=client.getsockname())
            assert far.local == ("127.0.0.1", port)


def test_a_destroyed_connection_is_reset_at_both_ends(netns: str) -> None:
    with _listening(netns, "127.0.0.1") as listening, Sockets(netns) as sockets:
        client, accepted = tcp_pair(netns, listening)
        with client, accepted:
            (near,) = _find(sockets, local=client.getsockname())
            assert sockets.destroy(near)
            with pytest.raises(ConnectionAbortedError):
                client.recv(1)
            accepted.settimeout(5)
            with pytest.raises(ConnectionResetError):
                accepted.recv(1)
            assert not sockets.destroy(near)


def test_a_namespace_without_sockets(netns: str) -> None:
    with Sockets(netns) as sockets:
        assert list(sockets.listed()) == []
        assert reached(netns, "127.0.0.1", 9) == "refused"


def test_the_cgroup_is_the_one_a_socket_was_made_in(netns: str, cgroup: str) -> None:
    script = "import os, sys; open(sys.argv[1] + '/cgroup.procs', 'w').write('0')\nimport socket\n"
    script += "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print(flush=True); input()"
    program = in_namespace(
        netns,
        lambda: subprocess.Popen([sys.executable, "-S", "-c", script, cgroup], stdin=-1, stdout=-1, text=True),
    )
    with program, Sockets(netns) as sockets:
        assert program.stdout is not None
        program.stdout.readline()
        assert [s.cgroup for s in sockets.listed()] == [os.stat(cgroup).st_ino]
        program.communicate("\n")
