"""A source port that is used again while the kernel still knows the connection that had it: translation is decided for
the first packet of a connection, so the second one would go where the first one went, whoever makes it."""

import socket
from dataclasses import replace

import pytest

from agent.relay.leg import abort
from redirect.desired import Capture, Desired, Recognise
from redirect.kernel import Kernel
from redirect.namespace import in_namespace
from redirect.origdst import listener
from tests.redirect.conftest import Wire
from tests.redirect.test_borrow import dialled, needs_port_range
from tests.redirect.traffic import MARKS, as_user, family

WEB = Capture("shop/web", Recognise(uid=1001), 15101)
JOB = Capture("shop/job", Recognise(uid=1003), 15102)
MESH = frozenset({("10.77.0.9", 80), ("fd77::9", 80)})
DESIRED = Desired((WEB, JOB), MESH, agent_uids=(990,))
STRANGER = 1002
ENDS = [("10.77.0.1", "10.77.0.9"), ("fd77::1", "fd77::9")]


def _dial(wire: Wire, uid: int, source: str, destination: str, patience: float = 5, port: int = 80) -> socket.socket:
    def dial() -> socket.socket:
        as_user(uid)
        sock = socket.socket(family(source))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((source, 40001))
        sock.settimeout(patience)
        try:
            sock.connect((destination, port))
        except OSError:
            sock.close()
            raise
        return sock

    return in_namespace(wire.node, dial)


def _reset(client: socket.socket, listening: socket.socket) -> None:
    """Have the connection ended by the server, in a way after which the kernel remembers it for some seconds."""
    with client:
        abort(listening.accept()[0])
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def _agents(wire: Wire, source: str, port: int) -> socket.socket:
    loopback = "::1" if ":" in source else "127.0.0.1"
    sock = in_namespace(wire.node, lambda: listener(family(source), loopback, port, MARKS.agent))
    sock.settimeout(2)
    return sock


@pytest.mark.parametrize(("source", "destination"), ENDS)
@pytest.mark.parametrize("whole", [False, True], ids=["by uid", "namespace"])
def test_by_the_same_workload(wire: Wire, kernel: Kernel, source: str, destination: str, whole: bool) -> None:
    web = Capture("shop/web", Recognise(everything=True), 15101)
    kernel.apply(Desired((web,), MESH, agent_uids=(990,)) if whole else DESIRED)
    with _agents(wire, source, 15101) as captured:
        for _ in range(3):
            _reset(_dial(wire, 1001, source, destination), captured)


@pytest.mark.parametrize(("source", "destination"), ENDS)
@pytest.mark.parametrize("other", [STRANGER, 1003], ids=["nobody's", "another's"])
def test_somebody_else_does_not_become_the_workload(
    wire: Wire, kernel: Kernel, source: str, destination: str, other: int
) -> None:
    kernel.apply(DESIRED)
    with _agents(wire, source, 15101) as captured, _agents(wire, source, 15102):
        _reset(_dial(wire, 1001, source, destination), captured)
        with pytest.raises(TimeoutError):
            _dial(wire, other, source, destination, 0.5)
        captured.settimeout(0.1)
        with pytest.raises(TimeoutError):
            captured.accept()


@pytest.mark.parametrize(("source", "destination"), ENDS)
@pytest.mark.parametrize("before", ["a stranger's", "its own, before it was enrolled"])
def test_the_workload_does_not_go_out_in_clear(
    wire: Wire, kernel: Kernel, source: str, destination: str, before: str
) -> None:
    stranger = before == "a stranger's"
    kernel.apply(DESIRED if stranger else Desired((JOB,), MESH, agent_uids=(990,)))
    far = in_namespace(wire.far, lambda: listener(family(source), destination, 80))
    far.settimeout(2)
    with far, _agents(wire, source, 15101):
        for _ in range(2):
            _reset(_dial(wire, STRANGER if stranger else 1001, source, destination), far)
        kernel.apply(DESIRED)
        with pytest.raises(TimeoutError):
            _dial(wire, 1001, source, destination, 0.5)
        far.settimeout(0.1)
        with pytest.raises(TimeoutError):
            far.accept()


@pytest.mark.parametrize(("source", "destination"), ENDS)
def test_nor_to_a_port_that_has_the_number_of_its_own(
    wire: Wire, kernel: Kernel, source: str, destination: str
) -> None:
    desired = replace(DESIRED, mesh=MESH | {(destination, WEB.port)})
    kernel.apply(replace(desired, captures=(JOB,)))
    far = in_namespace(wire.far, lambda: listener(family(source), destination, WEB.port))
    far.settimeout(2)
    with far, _agents(wire, source, WEB.port):
        _reset(_dial(wire, 1001, source, destination, port=WEB.port), far)
        kernel.apply(desired)
        with pytest.raises(TimeoutError):
            _dial(wire, 1001, source, destination, 0.5, WEB.port)
        far.settimeout(0.1)
        with pytest.raises(TimeoutError):
            far.accept()


@pytest.mark.parametrize(("source", "destination"), ENDS)
def test_a_trial_that_is_over_holds_nobody_up(wire: Wire, kernel: Kernel, source: str, destination: str) -> None:
    """Also where nobody lives to tidy up after it."""
    kernel.apply(replace(DESIRED, until=1.0))
    far = in_namespace(wire.far, lambda: listener(family(source), destination, 80))
    far.settimeout(2)
    with far:
        _reset(_dial(wire, 1001, source, destination), far)
        _dial(wire, 1001, source, destination, 0.5).close()


@needs_port_range
@pytest.mark.parametrize(("destination", "source"), ENDS)
def test_the_agent_dials_again_from_its_callers_port(wire: Wire, kernel: Kernel, source: str, destination: str) -> None:
    """Inside a workload's own network namespace, where whatever opens a connection counts as the workload's."""
    web = Capture("shop/web", Recognise(everything=True), 15101, ((destination, 80),))
    kernel.apply(Desired((web,), MESH | {(destination, 80)}, agent_uids=(990,), capture_all=True))
    application = in_namespace(wire.node, lambda: listener(family(source), destination, 80))
    application.settimeout(2)
    with application:
        for _ in range(3):
            client = dialled(wire.node, destination, source, 40001)
            assert client.getsockname()[1] == 40001
            _reset(client, application)
