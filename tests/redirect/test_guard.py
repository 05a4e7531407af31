"""The capture ports themselves: for redirected connections only, and no socket but the agent's gets them."""

import socket
import subprocess
import sys

import pytest

from redirect.desired import Capture, Desired, Recognise
from redirect.kernel import Kernel
from redirect.namespace import in_namespace
from tests.redirect.conftest import Wire
from tests.redirect.traffic import MARKS, REFUSED, Server, reached

WEB = Capture("shop/web", Recognise(uid=1001), 15101, (("10.77.0.1", 80), ("fd77::1", 80)), shares_address=True)
DESIRED = Desired((WEB,), frozenset({("10.77.0.9", 80), ("fd77::9", 80)}), agent_uids=(0, 990))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.77.0.1", "fd77::1"])
@pytest.mark.parametrize("port", [15101, 15006])
def test_direct_dials_are_refused(wire: Wire, kernel: Kernel, address: str, port: int) -> None:
    anywhere = "::" if ":" in address else "0.0.0.0"
    with Server(wire.node, "agent", anywhere, port, MARKS.agent) as server:
        assert reached(wire.node, address, port, uid=4711) == "agent"
        kernel.apply(DESIRED)
        # Who else, the workload itself, root and even the agent.
        for uid, mark in ((4711, 0), (1001, 0), (0, 0), (990, MARKS.agent)):
            assert reached(wire.node, address, port, uid=uid, mark=mark) == REFUSED
        if address not in ("127.0.0.1", "::1"):
            assert reached(wire.far, address, port) == REFUSED
        assert len(server.seen) == 1


@pytest.mark.parametrize("address", ["10.77.0.9", "fd77::9"])
@pytest.mark.parametrize("listening", ["loopback", "any"])
@pytest.mark.parametrize("mark", [0, 0xC0170002, 0xC0160001])
def test_a_squatter_on_a_capture_port_gets_nothing(
    wire: Wire, kernel: Kernel, address: str, listening: str, mark: int
) -> None:
    loopback, anywhere = ("::1", "::") if ":" in address else ("127.0.0.1", "0.0.0.0")
    place = loopback if listening == "loopback" else anywhere
    kernel.apply(DESIRED)
    with Server(wire.node, "squatter", place, 15101, mark) as squatter:
        assert reached(wire.node, address, 80, uid=1001) == REFUSED
        assert squatter.seen == []
    with Server(wire.node, "agent", place, 15101, MARKS.agent):
        assert reached(wire.node, address, 80, uid=1001) == "agent"


@pytest.mark.parametrize("address", ["10.77.0.1", "fd77::1"])
def test_a_squatter_on_the_inbound_port_gets_nothing(wire: Wire, kernel: Kernel, address: str) -> None:
    kernel.apply(DESIRED)
    with Server(wire.node, "squatter", "::" if ":" in address else "0.0.0.0", 15006) as squatter:
        assert reached(wire.far, address, 80) == REFUSED
        assert reached(wire.node, address, 80, uid=4711) == REFUSED
        assert squatter.seen == []


def test_an_ordinary_user_cannot_mark_a_listener() -> None:
    code = (
        "import os, socket\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try: socket.socket().setsockopt(socket.SOL_SOCKET, 36, 1)\n"
        "except PermissionError: print('refused')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if "setresuid" in done.stderr:
        pytest.skip(f"setresuid: {done.stderr}")
    assert done.stdout == "refused\n"


def test_answers_to_a_client_port_that_is_a_capture_port(wire: Wire, kernel: Kernel) -> None:
    """Capture ports may lie among the ports that clients get: answers to those are no new connections."""
    kernel.apply(DESIRED)

    def dial() -> bytes:
        with socket.socket() as sock:
            sock.settimeout(3)
            sock.bind(("10.77.0.1", 15101))
            sock.connect(("10.77.0.9", 81))
            return sock.recv(100)

    with Server(wire.far, "far", "10.77.0.9", 81):
        assert in_namespace(wire.node, dial) == b"far"
