"""What a pass and the news that come meanwhile make of each other."""

import time

import trio
import trio.testing

from agent.discovery.tenants import Tenants
from agent.node.activation import Activation
from agent.node.enrolment import Local, Ports
from agent.node.files import StateError
from agent.node.state import State
from agent.node.view import MeshView
from agent.snapshot import Snapshot
from ca.resources.workload import Match
from redirect.desired import Desired

BOX = Local("shop/box", "box", "/box", Match(netns="/box"), (("10.0.0.7", 80),), True, address="10.0.0.7")


class Tables:
    """Those that stand: box has one when it is asked for the first time, and none after that. The first answer is the
    slower one."""

    def __init__(self):
        self.answers = [(0.2, frozenset({"shop/box"})), (0.0, frozenset())]

    async def inside(self):
        pause, found = self.answers.pop(0)
        await trio.sleep(pause)
        return found


def activation(state, capture=None):
    view = MeshView(Snapshot("n1"))
    return Activation(view, state, None, capture, None, range(1), Desired(), time.time, lambda: None, None)


async def test_ports_that_could_not_be_written_are_written_later(tmp_path, monkeypatch):
    """On disk they keep another workload from getting them in our next life."""
    state, save = State(tmp_path), State.save_ports
    failures = [StateError("no space left")]

    def full(self, ports):
        if failures:
            raise failures.pop()
        save(self, ports)

    monkeypatch.setattr(State, "save_ports", full)
    made = activation(state)
    try:
        ports = Ports({"shop/web": 15100}, last=15100)
        assert await made._keep(ports) == ["no space left"]
        assert made.ports == ports
        assert await made._keep(ports) == []
        assert State(tmp_path).ports() == ports
    finally:
        made.close()


async def test_what_was_seen_first_does_not_count_last(tmp_path):
    """A container ends while a pass looks at the tables: it waits at the door for whoever comes next."""
    made = activation(State(tmp_path), Tables())
    try:
        made._housed = [BOX], {}, Tenants()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made._see_tables)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(made._see_tables)
        assert made._hold.lobby.endpoints == {("10.0.0.7", 80)}
    finally:
        made.close()
