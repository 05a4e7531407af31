import errno
import os
import socket
import subprocess
import sys

import pytest

from redirect.namespace import in_namespace
from redirect.origdst import (
    SO_MARK,
    NotRedirected,
    dial_socket,
    listener,
    original_destination,
    spoof_socket,
    spoof_source,
)
from tests.redirect.traffic import tcp_pair

LOOPBACK = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


@pytest.mark.parametrize(("family", "address"), LOOPBACK)
def test_destination_of_a_redirected_connection(netns: str, family: socket.AddressFamily, address: str) -> None:
    rule = "table inet t { chain o { type nat hook output priority -100; tcp dport 81 redirect to :15001; }; }"
    in_namespace(netns, lambda: subprocess.run(["nft", rule], check=True))
    with in_namespace(netns, lambda: listener(family, address, 15001)) as listening:
        client = in_namespace(netns, lambda: socket.create_connection((address, 81), timeout=5))
        listening.settimeout(5)
        with client, listening.accept()[0] as accepted:
            assert original_destination(accepted) == (address, 81)


@pytest.mark.parametrize("tracking", [False, True])
@pytest.mark.parametrize(("family", "address"), LOOPBACK)
def test_a_direct_dial_has_no_destination(
    netns: str, family: socket.AddressFamily, address: str, tracking: bool
) -> None:
    if tracking:
        rule = "table inet t { chain o { type nat hook output priority -100; tcp dport 81 redirect to :15001; }; }"
        in_namespace(netns, lambda: subprocess.run(["nft", rule], check=True))
    with in_namespace(netns, lambda: listener(family, address, 15001)) as listening:
        client, accepted = tcp_pair(netns, listening)
        with client, accepted, pytest.raises(NotRedirected, match="port 15001 was dialled directly"):
            original_destination(accepted)


@pytest.mark.parametrize(("family", "address"), LOOPBACK)
def test_listeners_and_what_they_accept_are_marked(netns: str, family: socket.AddressFamily, address: str) -> None:
    with in_namespace(netns, lambda: listener(family, address, 0, mark=0xC0170001)) as listening:
        assert not listening.getblocking()
        assert not listening.get_inheritable()
        client, accepted = tcp_pair(netns, listening)
        with client, accepted:
            assert accepted.getsockopt(socket.SOL_SOCKET, SO_MARK) & 0xFFFFFFFF == 0xC0170001


def test_an_ipv6_listener_leaves_ipv4_alone(netns: str) -> None:
    def both() -> tuple[socket.socket, socket.socket]:
        return listener(socket.AF_INET6, "::", 15006), listener(socket.AF_INET, "0.0.0.0", 15006)

    six, four = in_namespace(netns, both)
    with six, four:
        assert (six.getsockname()[:2], four.getsockname()) == (("::", 15006), ("0.0.0.0", 15006))


def test_a_taken_port_says_who_to_ask(netns: str) -> None:
    with (
        in_namespace(netns, lambda: listener(socket.AF_INET, "127.0.0.1", 15001)),
        pytest.raises(
            OSError, match=r"cannot listen on 127.0.0.1 port 15001: Address already in use .*ss -ltnp"
        ) as error,
    ):
        in_namespace(netns, lambda: listener(socket.AF_INET, "127.0.0.1", 15001))
    assert error.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "198.51.100.7"), (socket.AF_INET6, "2001:db8::7")])
def test_a_socket_that_dials_from_a_foreign_address(netns: str, family: socket.AddressFamily, address: str) -> None:
    with in_namespace(netns, lambda: spoof_socket(family, 0xC0170002, address)) as sock:
        assert sock.getsockname()[0] == address
    with in_namespace(netns, lambda: spoof_socket(family, 0xC0170002)) as sock:
        # Outside the namespace, as the worker does that is handed such sockets.
        spoof_source(sock, address)
        assert sock.getsockname()[0] == address
        assert sock.getsockopt(socket.SOL_SOCKET, SO_MARK) & 0xFFFFFFFF == 0xC0170002


def test_marks_without_privilege_are_explained() -> None:
    if os.geteuid() != 0:
        pytest.skip("setresuid 65534: needs root")
    code = (
        "import os, socket\n"
        "from redirect.origdst import dial_socket\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try: dial_socket(socket.AF_INET, 1)\n"
        "except PermissionError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "cannot make a marked socket: Operation not permitted (marks and foreign addresses need CAP_NET_ADMIN)" in (
        done.stdout
    )


def test_dial_sockets_do_not_block() -> None:
    if os.geteuid() != 0:
        pytest.skip("SO_MARK: needs CAP_NET_ADMIN")
    with dial_socket(socket.AF_INET, 7) as sock:
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, SO_MARK) == 7
