"""Who comes from another namespace of the machine and was not captured there: held, unless known to be nobody's."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from redirect.counts import Held, Unnamed
from redirect.desired import Desired, Hold
from redirect.namespace import in_namespace
from tests.redirect.conftest import FAR, MESH, UNIT, Scene
from tests.redirect.traffic import MARKS, REFUSED, Server, nft, reached, tcp_pair

BRIDGE = Hold(bridges=frozenset({"boxes"}))


@pytest.mark.parametrize("address", FAR)
def test_newcomers_behind_a_bridge_do_not_reach_the_mesh(scene: Scene, address: str) -> None:
    assert scene.reached(address) == "far"
    scene.apply(BRIDGE)
    assert scene.reached(address) == REFUSED
    assert scene.reached(address.replace(".9", ".1").replace("::9", "::1")) == REFUSED  # nor this machine's workloads
    assert scene.reached(address, 81) == "far"
    assert reached(scene.node, address, 80) == "far"


@pytest.mark.parametrize("address", FAR)
def test_while_the_agent_is_there_they_wait(scene: Scene, address: str) -> None:
    """The packet that opens a connection is sent again after a second, and finds things as they are then."""
    source = "fd99::5" if ":" in address else "10.99.0.5"
    scene.apply(BRIDGE)
    scene.kernel.appear(MARKS)
    said: list[str] = []
    caller = threading.Thread(target=lambda: said.append(scene.reached(address)))
    started = time.monotonic()
    caller.start()
    while "packets 0" in _line(scene.node, "waits", address):  # until it was dropped once
        time.sleep(0.01)
    scene.apply(replace(BRIDGE, vouched=frozenset({(source, scene.card)})))
    caller.join()
    assert said == ["far"]
    assert 0.9 < time.monotonic() - started < 2.5
    assert scene.kernel.counters().held == Held(waited=1)
    scene.apply(BRIDGE)
    scene.kernel.vanish()
    assert scene.reached(address) == REFUSED
    assert scene.kernel.counters().held == Held(waited=1, refused=1)
    scene.apply(BRIDGE, told=False)  # the rules change, and the count goes on
    assert scene.kernel.counters().held.refused == 1


def _line(node: str, comment: str, address: str) -> str:
    chain = nft(node, "list", "chain", "inet", "culvert", "newcomer")
    family = "mesh6" if ":" in address else "mesh4"
    return next(line for line in chain.splitlines() if comment in line and family in line)


@pytest.mark.parametrize("address", FAR)
def test_stations_are_known_by_address_and_card(scene: Scene, address: str) -> None:
    source = "fd99::5" if ":" in address else "10.99.0.5"
    scene.apply(replace(BRIDGE, vouched=frozenset({(source, scene.card)})))
    assert scene.reached(address) == "far"
    rules = nft(scene.node, "-a", "list", "chain", "inet", "culvert", "hold")
    for stranger in ((source, "02:00:00:00:00:01"), (source[:-1] + "6", scene.card)):
        scene.apply(replace(BRIDGE, vouched=frozenset({stranger})))
        assert scene.reached(address) == REFUSED
    # Elements were changed and no rules; people can read both.
    assert nft(scene.node, "-a", "list", "chain", "inet", "culvert", "hold") == rules
    assert f"{source[:-1]}6 . {scene.card}" in nft(scene.node, "list", "table", "inet", "culvert")
    print(nft(scene.node, "list", "table", "inet", "culvert"))
    assert '"boxes"' in nft(scene.node, "list", "set", "inet", "culvert", "bridges")


@pytest.mark.parametrize("address", FAR)
def test_what_began_in_front_of_its_own_table_is_refused(scene: Scene, address: str) -> None:
    source = "fd99::5" if ":" in address else "10.99.0.5"
    scene.apply(replace(BRIDGE, settled=frozenset({(source, scene.card)})))
    scene.kernel.appear(MARKS)
    assert scene.reached(address) == REFUSED
    assert scene.reached(address, 81) == "far"
    assert scene.kernel.counters().held == Held(refused=1)


@pytest.mark.parametrize("address", FAR)
def test_an_address_inside_is_held_wherever_it_comes_from(scene: Scene, address: str) -> None:
    scene.apply(Hold(inside=frozenset({"10.99.0.5", "fd99::5"})))
    assert scene.reached(address) == REFUSED
    assert scene.reached(address, 81) == "far"
    scene.apply(Hold(inside=frozenset({"10.99.0.6", "fd99::6"})))
    assert scene.reached(address) == "far"


def test_the_agent_may_borrow_an_address_that_is_held(scene: Scene) -> None:
    scene.apply(Hold(inside=frozenset({"10.99.0.5"})), mesh=frozenset({("10.77.0.1", 82)}))
    with Server(scene.node, "application", "10.77.0.1", 82):
        dialled = reached(scene.node, "10.77.0.1", 82, mark=MARKS.spoof, source="10.99.0.5", transparent=True)
        assert dialled == "application"
        assert scene.reached("10.77.0.1", 82) == REFUSED


def test_connections_that_stand_go_on(scene: Scene) -> None:
    listening = in_namespace(scene.far, lambda: socket.create_server(("10.77.0.9", 82)))
    with listening:
        client, server = tcp_pair(scene.box, listening)
        with client, server:
            scene.apply(BRIDGE, mesh=frozenset({("10.77.0.9", 82)}))
            assert reached(scene.box, "10.77.0.9", 82) == REFUSED
            client.sendall(struct.pack("!I", 7))
            assert server.recv(10) == struct.pack("!I", 7)


def test_what_is_never_captured_is_not_held(scene: Scene) -> None:
    scene.apply(BRIDGE, never=frozenset({80}))
    assert scene.reached(FAR[0]) == "far"
    scene.apply(BRIDGE, spared=frozenset({(FAR[0], 80)}))
    assert (scene.reached(FAR[0]), scene.reached(FAR[1])) == ("far", REFUSED)
    scene.apply(BRIDGE, until=1.0)  # a trial that is over
    assert scene.reached(FAR[0]) == "far"
    scene.apply(BRIDGE)
    assert scene.reached(FAR[0]) == REFUSED
    scene.apply(Hold())
    assert scene.reached(FAR[0]) == "far"


def test_where_the_kernel_cannot_be_told_of_the_agent_all_are_refused(scene: Scene) -> None:
    scene.apply(BRIDGE, told=False)
    assert scene.reached(FAR[0]) == REFUSED
    assert "ct label" not in nft(scene.node, "list", "table", "inet", "culvert")


OPEN = Hold(open_bridges=frozenset({"boxes"}))


@pytest.mark.parametrize("address", FAR)
def test_behind_a_bridge_where_all_fail_open_newcomers_pass_and_are_counted(scene: Scene, address: str) -> None:
    source = "fd99::5" if ":" in address else "10.99.0.5"
    scene.apply(OPEN)
    assert [scene.reached(address, port) for port in (80, 81)] == ["far", "far"]
    assert scene.kernel.counters().unnamed == Unnamed(containers=1)
    # Who is nobody's, or has a table that counts, is not counted here; nor what comes from elsewhere.
    scene.apply(replace(OPEN, vouched=frozenset({(source, scene.card)})))
    assert scene.reached(address) == "far"
    here = address.replace(".9", ".1").replace("::9", "::1")
    assert reached(scene.far, here, 80) == "inbound"
    assert scene.kernel.counters() == replace(scene.kernel.counters(), held=Held(), unnamed=Unnamed(containers=1))
    # What a workload of this machine refuses has not passed.
    scene.apply(OPEN)
    assert scene.reached(here) == "inbound"
    assert scene.kernel.counters().unnamed == Unnamed(containers=1)


@pytest.mark.parametrize("address", FAR)
def test_while_the_agent_is_there_those_that_fail_open_wait_as_well(scene: Scene, address: str) -> None:
    source = "fd99::5" if ":" in address else "10.99.0.5"
    for held in (OPEN, Hold(open_inside=frozenset({"10.99.0.5", "fd99::5"}))):
        before = scene.kernel.counters().held.waited
        scene.apply(held)
        scene.kernel.appear(MARKS)
        assert scene.reached(address, 81) == "far"
        with _waiting(scene, address) as said:
            assert _soon(lambda before=before: scene.kernel.counters().held.waited > before)
            scene.kernel.vanish()  # the agent goes: what waited for it passes when it is sent again
        assert said == ["far"]
    assert scene.kernel.counters().held.refused == 0
    assert scene.kernel.counters().unnamed == Unnamed(containers=2)
    # Whoever has its table comes here for one reason only while the agent is there: it began in front of that.
    station = frozenset({(source, scene.card)})
    scene.apply(replace(OPEN, vouched=station, attended=station))
    assert scene.reached(address) == "far"
    scene.kernel.appear(MARKS)
    assert scene.reached(address) == REFUSED
    assert scene.reached(address, 81) == "far"
    assert scene.kernel.counters().held.refused == 1
    assert scene.kernel.counters().unnamed == Unnamed(containers=2)


def _soon(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not true() and time.monotonic() < deadline:
        time.sleep(0.01)
    return true()


@contextmanager
def _waiting(scene: Scene, address: str) -> Iterator[list[str]]:
    """Somebody calls during the block; afterwards, whom it reached."""
    said: list[str] = []
    caller = threading.Thread(target=lambda: said.append(scene.reached(address)))
    caller.start()
    yield said
    caller.join()


@pytest.mark.parametrize("address", FAR)
def test_behind_a_bridge_of_both_kinds_newcomers_are_refused(scene: Scene, address: str) -> None:
    """They could be of the one that is closed."""
    both = replace(BRIDGE, open_bridges=frozenset({"others"}), open_inside=frozenset({"10.99.0.7"}))
    scene.apply(both)
    assert scene.reached(address) == REFUSED
    scene.apply(replace(OPEN, bridges=frozenset({"others"}), inside=frozenset({"10.99.0.7"})))
    assert scene.reached(address) == "far"
    assert scene.kernel.counters().held == Held(refused=1)
    assert scene.kernel.counters().unnamed == Unnamed(containers=1)


@pytest.mark.parametrize("address", FAR)
def test_an_address_inside_that_fails_open_is_counted(scene: Scene, address: str) -> None:
    scene.apply(Hold(open_inside=frozenset({"10.99.0.5", "fd99::5"})))
    assert [scene.reached(address, port) for port in (80, 81)] == ["far", "far"]
    scene.apply(Hold(open_inside=frozenset({"10.99.0.5", "fd99::5"})), open_elsewhere=True)
    assert scene.kernel.counters().unnamed == Unnamed(containers=1)
    # The count stays when the namespace has got a table of its own.
    scene.apply(Hold(), open_elsewhere=True)
    assert scene.reached(address) == "far"
    assert scene.kernel.counters().unnamed == Unnamed(containers=1)


def test_where_the_kernel_cannot_be_told_of_the_agent_nobody_passes(scene: Scene) -> None:
    for open_ in (OPEN, Hold(open_inside=frozenset({"10.99.0.5"}))):
        desired = Desired((UNIT,), MESH, hold=open_)
        scene.kernel.apply(desired)
        assert scene.reached(FAR[0]) == "far"
        scene.kernel.apply(desired.untold)
        assert scene.reached(FAR[0]) == REFUSED
        assert "ct label" not in nft(scene.node, "list", "table", "inet", "culvert")
    station = frozenset({("10.99.0.5", scene.card)})
    scene.kernel.apply(Desired((UNIT,), MESH, hold=replace(OPEN, vouched=station, attended=station)).untold)
    assert scene.reached(FAR[0]) == REFUSED
