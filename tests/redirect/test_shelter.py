"""Plaintext for a namespace that may have no table: held back by the machine's own."""

import re
import struct
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest

from redirect.counts import Held
from redirect.desired import Hold, Shelter
from redirect.namespace import in_namespace
from redirect.origdst import listener
from tests.redirect.conftest import Scene
from tests.redirect.traffic import MARKS, REFUSED, Server, nft, reached, tcp_pair

BOX = ["10.99.0.5", "fd99::5"]
PORT, OTHER = 90, 91
ENDPOINTS = Hold(shelter=Shelter(endpoints=frozenset((address, PORT) for address in BOX)))
BEHIND = Hold(shelter=Shelter(behind=frozenset({("boxes", PORT)})))


@pytest.fixture
def inside(scene: Scene) -> Iterator[Scene]:
    """With a program that serves in the container."""
    with ExitStack() as stack:
        for address in ("0.0.0.0", "::"):
            for port in (PORT, OTHER):
                stack.enter_context(Server(scene.box, "inside", address, port))
        yield scene


@pytest.mark.parametrize("address", BOX)
@pytest.mark.parametrize("hold", [ENDPOINTS, BEHIND])
def test_while_the_agent_is_away_nobody_gets_in(inside: Scene, hold: Hold, address: str) -> None:
    callers = (inside.far, inside.node)
    inside.apply(Hold())
    assert [reached(caller, address, PORT) for caller in callers] == ["inside", "inside"]
    inside.apply(hold)
    assert [reached(caller, address, PORT) for caller in callers] == [REFUSED, REFUSED]
    assert [reached(caller, address, OTHER) for caller in callers] == ["inside", "inside"]
    assert inside.kernel.counters().held == Held(sheltered=2)
    inside.kernel.appear(MARKS)
    assert [reached(caller, address, PORT) for caller in callers] == ["inside", "inside"]
    inside.kernel.vanish()
    assert reached(inside.far, address, PORT) == REFUSED
    assert reached(inside.box, address, PORT) == "inside"  # its own, which no table takes either
    assert inside.kernel.counters().held == Held(sheltered=3)


@pytest.mark.parametrize("address", BOX)
def test_behind_a_bridge_neighbours_are_reached(inside: Scene, address: str) -> None:
    inside.apply(BEHIND)
    rules = nft(inside.node, "-a", "list", "chain", "inet", "culvert", "shelter")
    neighbours = Hold(shelter=replace(BEHIND.shelter, neighbours=frozenset(BOX)))
    inside.apply(neighbours)
    assert reached(inside.far, address, PORT) == "inside"
    assert nft(inside.node, "-a", "list", "chain", "inet", "culvert", "shelter") == rules  # only elements changed
    # A workload's own address is one at which it is reached by nobody, whoever else has it.
    both = replace(neighbours.shelter, endpoints=ENDPOINTS.shelter.endpoints)
    inside.apply(Hold(shelter=both))
    assert reached(inside.far, address, PORT) == REFUSED
    inside.apply(Hold(shelter=Shelter(behind=frozenset({("others", PORT), ("boxes", OTHER)}))))
    assert [reached(inside.far, address, port) for port in (PORT, OTHER)] == ["inside", REFUSED]
    listed = nft(inside.node, "list", "set", "inet", "culvert", "shelter-behind")
    assert f'"boxes" . {OTHER}' in listed
    assert f'"others" . {PORT}' in listed


@pytest.mark.parametrize("address", BOX)
@pytest.mark.parametrize("hold", [ENDPOINTS, BEHIND])
def test_while_the_agent_is_there_it_waits_for_the_table(inside: Scene, hold: Hold, address: str) -> None:
    """And comes through with the next try of TCP, after a second."""
    inside.kernel.appear(MARKS)
    waiting = replace(hold, lobby=hold.shelter)
    inside.apply(waiting)
    assert reached(inside.far, address, OTHER) == "inside"
    with ThreadPoolExecutor() as pool:
        callers = [pool.submit(reached, caller, address, PORT) for caller in (inside.far, inside.node)]
        while inside.kernel.counters().held != Held(delayed=2):
            assert not any(caller.done() for caller in callers)
            time.sleep(0.01)
        rules = nft(inside.node, "-a", "list", "chain", "inet", "culvert", "lobby")
        inside.apply(hold)
        assert [caller.result() for caller in callers] == ["inside", "inside"]
    # Only elements changed, but for what the chain had counted.
    assert nft(inside.node, "-sa", "list", "chain", "inet", "culvert", "lobby") == re.sub(
        r"packets .*? bytes \d+ ", "", rules
    )
    inside.apply(waiting)
    inside.kernel.vanish()
    assert reached(inside.far, address, PORT) == REFUSED


@pytest.mark.parametrize("address", BOX)
def test_behind_a_bridge_workloads_are_reached_where_nobody_would_be_refused(inside: Scene, address: str) -> None:
    behind = frozenset({("boxes", PORT), ("boxes", OTHER)})
    inside.apply(Hold(shelter=Shelter(behind=behind, let_in=frozenset((box, OTHER) for box in BOX))))
    assert [reached(inside.far, address, port) for port in (PORT, OTHER)] == [REFUSED, "inside"]


@pytest.mark.parametrize("hold", [ENDPOINTS, BEHIND])
def test_a_published_port_is_seen_as_the_one_in_the_container(inside: Scene, hold: Hold) -> None:
    for hook, name in (("prerouting", "dstnat"), ("output", "-100")):
        nft(inside.node, "add", "table", "ip", "engine")
        nft(inside.node, f"add chain ip engine {hook} {{ type nat hook {hook} priority {name}; }}")
        nft(inside.node, f"add rule ip engine {hook} ip daddr 10.77.0.1 tcp dport 8080 dnat to 10.99.0.5:{PORT}")
    assert [reached(caller, "10.77.0.1", 8080) for caller in (inside.far, inside.node)] == ["inside", "inside"]
    inside.apply(hold)
    assert reached(inside.far, "10.77.0.1", 8080) == REFUSED
    if hold is ENDPOINTS:  # by its bridge the kernel does not know it before it is on its way
        assert reached(inside.node, "10.77.0.1", 8080) == REFUSED


def test_what_is_left_alone(inside: Scene) -> None:
    address = BOX[0]
    inside.apply(ENDPOINTS, never=frozenset({PORT}))
    assert reached(inside.far, address, PORT) == "inside"
    inside.apply(ENDPOINTS, spared=frozenset({(address, PORT)}))
    assert reached(inside.far, address, PORT) == "inside"
    inside.apply(ENDPOINTS, until=1.0)  # a trial that is over
    assert reached(inside.far, address, PORT) == "inside"
    inside.apply(ENDPOINTS)
    assert reached(inside.node, address, PORT, mark=MARKS.agent) == "inside"
    assert reached(inside.node, address, PORT, mark=MARKS.agent, uid=1001) == REFUSED
    assert inside.reached("10.77.0.9", 81) == "far"  # what the container itself does


def test_connections_that_stand_go_on(inside: Scene) -> None:
    listening = in_namespace(inside.box, lambda: listener(2, BOX[0], 92))
    shelter = Hold(shelter=Shelter(endpoints=frozenset({(BOX[0], 92)})))
    with listening:
        client, server = tcp_pair(inside.far, listening)
        with client, server:
            inside.apply(shelter)
            assert reached(inside.far, BOX[0], 92) == REFUSED
            client.sendall(struct.pack("!I", 7))
            assert server.recv(10) == struct.pack("!I", 7)


def test_where_nobody_can_tell_when_the_agent_is_away_nobody_is_refused(inside: Scene) -> None:
    inside.apply(ENDPOINTS, told=False)
    assert reached(inside.far, BOX[0], PORT) == "inside"
    assert ENDPOINTS.closed == Hold()
