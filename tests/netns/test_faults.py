"""What breaks when something breaks: as little as can be, and never into the clear."""

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from pyroute2.iproute import IPRoute

from agent.lab.place import Place
from agent.lab.process import Process, eventually
from agent.lab.sniffer import sniff
from tests.netns import traffic
from tests.netns.test_streams import children
from tests.netns.town import Town
from tests.promises import not_even_once

MARKER = b"nobody-may-read-this-on-the-wire"
WORKERS = 2

RATE = 250
"""Attempts a second through a gap; 200 are asked for."""


def agent_of(town: Town, node: str) -> Process:
    process = town.node(node).process
    assert process is not None
    return process


async def test_a_killed_worker_takes_only_its_own_connections(town: Town) -> None:
    """Twenty connections on two workers of node one, and one that is node two's alone."""
    db = town["db"]
    async with (
        traffic.serving(db.server, db.address, db.port, traffic.echo),
        await traffic.dial(Place(town.far.namespace), db.address, db.port) as elsewhere,
    ):
        through = [await traffic.dial(town["web"].place, db.address, db.port) for _ in range(20)]
        for stream in (elsewhere, *through):
            assert await _answers(stream)
        before = children(agent_of(town, "one").pid)
        assert len(before) == WORKERS
        os.kill(before[0], signal.SIGKILL)
        alive = [stream for stream in through if await _answers(stream)]
        assert 0 < len(alive) < 20
        assert await _answers(elsewhere)
        # New ones wait in the queue of a socket that never closed, or are refused: then the next one works.
        for _ in range(10):
            assert await _eventually_carried(town)
        assert all([await _answers(stream) for stream in alive])
        assert await eventually(lambda: len(children(agent_of(town, "one").pid)) == WORKERS)
        for stream in through:
            await trio.aclose_forcefully(stream)


async def _answers(stream: trio.SocketStream) -> bool:
    """Whether there is still an echo at the other end."""
    try:
        with trio.fail_after(5):
            await stream.send_all(b"there?")
            return await stream.receive_some() != b""
    except traffic.ENDED:
        return False


@pytest.mark.alone
async def test_nothing_leaks_while_a_worker_is_replaced(town: Town) -> None:
    db = town["db"]
    outcomes: Counter[str] = Counter()

    async def attempt() -> None:
        try:
            said = await traffic.ask(town["web"].place, db.address, db.port, MARKER, seconds=15)
        except (TimeoutError, trio.TooSlowError):
            outcomes["lost"] += 1
        except traffic.ENDED:
            outcomes["refused"] += 1
        else:
            outcomes["carried" if said == MARKER else "refused" if said == b"" else "wrong"] += 1

    async with (
        traffic.serving(db.server, db.address, db.port, traffic.echo),
        sniff(town.lab.topology, town.one.port) as sniffer,
    ):
        sniffer.restart(MARKER)
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(3 * RATE):
                if number in (RATE // 2, 3 * RATE // 2):
                    for worker in children(agent_of(town, "one").pid):
                        os.kill(worker, signal.SIGKILL)
                nursery.start_soon(attempt)
                await trio.sleep_until(begin + number / RATE)
            took = trio.current_time() - begin
        sniffer.drain()
        with not_even_once():
            assert (sniffer.leaks.clear, sniffer.lost) == (0, 0), outcomes
        assert sniffer.leaks.tunnelled > outcomes["carried"] * len(MARKER)
    assert 3 * RATE / took >= 200, f"only {3 * RATE / took:.0f} attempts a second"
    assert outcomes["carried"] + outcomes["refused"] == 3 * RATE, outcomes
    assert outcomes["carried"] > RATE
    assert outcomes["refused"] > 0 or outcomes["carried"] == 3 * RATE


async def test_a_peer_that_vanishes_without_a_word_is_noticed(town: Town) -> None:
    """Its cable is pulled, so no FIN and no RST ever comes; the tunnel's pings tell."""
    db = town["db"]
    async with (
        traffic.serving(db.server, db.address, db.port, traffic.echo),
        await traffic.dial(town["web"].place, db.address, db.port) as stream,
    ):
        await stream.send_all(b"before")
        assert await traffic.read_exactly(stream, 6) == b"before"
        async with _unplugged(town):
            begin = trio.current_time()
            with trio.fail_after(60), pytest.raises(trio.BrokenResourceError):
                await traffic.read_exactly(stream, 1)
            assert trio.current_time() - begin < 45
        assert await _eventually_carried(town, 30)


async def test_the_centre_gone_in_the_middle(town: Town) -> None:
    db = town["db"]
    assert town.mesh.process is not None
    async with traffic.serving(db.server, db.address, db.port, traffic.echo):
        assert await _eventually_carried(town, 10, "web", "db")  # whatever the test before has left
        async with await traffic.dial(town["web"].place, db.address, db.port) as stream:
            await town.mesh.process.kill()
            await stream.send_all(b"still")
            assert await traffic.read_exactly(stream, 5) == b"still"
        for caller in ("web", "front"):
            assert await traffic.ask(town[caller].place, db.address, db.port) == b"ping"
        await town.mesh.start_centre()
        await town.mesh.settled(30)
        assert await traffic.ask(town["web"].place, db.address, db.port) == b"ping"


async def test_the_centre_gone_from_the_start(town: Town) -> None:
    """Both nodes start again with what is on their disks, and with nobody to ask."""
    db, store = town["db"], town["store"]
    assert town.mesh.process is not None
    await town.mesh.process.kill()
    for node in ("one", "two"):
        await agent_of(town, node).kill()
    for node in ("one", "two"):
        await town.mesh.start_agent(town.node(node))
    for resident in (db, store):
        async with traffic.serving(resident.server, resident.address, resident.port, traffic.echo):
            for caller in ("web", "front"):
                assert await _eventually_carried(town, 10, caller, resident.name)
        record = await town.record("two", direction="inbound", destination__workload=resident.workload, state="closed")
        assert record["security"] == "mtls"
    await town.mesh.start_centre()
    await town.mesh.settled(30)


@asynccontextmanager
async def _unplugged(town: Town) -> AsyncIterator[None]:
    """Machine two without its cable."""

    def set_port(state: str) -> None:
        with IPRoute() as ip:
            ip.link("set", index=ip.link_lookup(ifname=town.two.port)[0], state=state)

    town.lab.topology.wire.run(lambda: set_port("down"))
    try:
        yield
    finally:
        town.lab.topology.wire.run(lambda: set_port("up"))


async def _eventually_carried(town: Town, seconds: float = 5, caller: str = "web", server: str = "db") -> bool:
    """Whether an exchange between the two is carried soon; refusals until then are fine."""
    resident = town[server]
    deadline = trio.current_time() + seconds
    while trio.current_time() < deadline:
        if not await traffic.refused(town[caller].place, resident.address, resident.port, seconds=seconds):
            return True
        await trio.sleep(0.05)
    return False
