"""Whose a socket is, asked of the real kernel."""

import os
import socket
import subprocess
import sys

import pytest

from redirect.caller import Callers
from redirect.namespace import in_namespace
from tests.redirect.traffic import as_user, tcp_pair


@pytest.fixture
def callers(netns: str):
    made = in_namespace(netns, Callers)
    yield made
    made.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_user_and_cgroup(netns: str, callers: Callers, cgroup: str, address: str) -> None:
    def serve() -> socket.socket:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        sock.bind((address, 0))
        sock.listen()
        return sock

    code = (
        "import os, socket, sys\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write('0')\n"
        "os.setresuid(64123, 64123, 64123)\n"
        "s = socket.socket(socket.AF_INET6 if ':' in sys.argv[2] else socket.AF_INET)\n"
        "s.settimeout(5); s.connect((sys.argv[2], int(sys.argv[3]))); s.recv(1)\n"
    )
    with in_namespace(netns, serve) as listening:
        port = str(listening.getsockname()[1])
        argv = [sys.executable, "-S", "-E", "-c", code, cgroup, address, port]
        child = in_namespace(netns, lambda: subprocess.Popen(argv))
        try:
            listening.settimeout(10)
            accepted, peer = listening.accept()
            with accepted:
                found = callers.find(peer[:2], accepted.getsockname()[:2])
                assert found is not None
                assert (found.uid, found.cgroup) == (64123, os.stat(cgroup).st_ino)
        finally:
            child.wait(10)


def test_nobody_any_more(netns: str, callers: Callers) -> None:
    def serve() -> socket.socket:
        as_user(0)
        return socket.create_server(("127.0.0.1", 0))

    with in_namespace(netns, serve) as listening:
        client, accepted = tcp_pair(netns, listening)
        local, remote = client.getsockname(), client.getpeername()
        assert callers.find(local, remote) is not None
        assert callers.find(local, ("127.0.0.1", 1)) is None
        accepted.close()
        client.close()
    assert callers.find(("127.0.0.1", 1), ("127.0.0.1", 2)) is None


def test_workers_can_afford_it() -> None:
    """They import it: without what builds rules, which takes megabytes."""
    code = "import sys, redirect.caller, redirect.cgroup; print('pyroute2.netlink' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
