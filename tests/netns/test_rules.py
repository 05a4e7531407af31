"""Captured means held: what the kernel does with enrolled traffic while the agent is away, and who may end that."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from agent.lab import programs
from agent.lab.namespace import Namespace
from agent.lab.place import Place
from agent.lab.process import eventually
from agent.lab.sniffer import Sniffer, sniff
from tests.netns import traffic
from tests.netns.town import Town
from tests.promises import not_even_once

MARKER = b"nobody-may-read-this-on-the-wire"


async def nft(namespace: Namespace, *arguments: str) -> str:
    ran = await programs.run(Place(namespace), ["nft", *arguments])
    assert ran.ok, ran.errors
    return ran.output.decode()


async def tables(town: Town) -> list[int]:
    """How many tables of ours stand on node one: in the host's namespace, and in that of front."""
    found = []
    for namespace in (town.one.namespace, town["front"].place.namespace):
        found.append((await nft(namespace, "list", "tables")).split("\n").count("table inet culvert"))
    return found


@asynccontextmanager
async def db_serves(town: Town) -> AsyncIterator[tuple[traffic.Served, Sniffer]]:
    """An echo server for db, and the wire listened to."""
    db = town["db"]
    async with (
        traffic.serving(db.server, db.address, db.port, traffic.echo) as served,
        sniff(town.lab.topology, town.one.port) as sniffer,
    ):
        sniffer.restart(MARKER)
        yield served, sniffer


async def carried(town: Town, caller: str = "web") -> bool:
    """Whether an exchange from a captured workload is carried."""
    db = town["db"]
    try:
        return await traffic.ask(town[caller].place, db.address, db.port, MARKER) == MARKER
    except traffic.ENDED:
        return False


async def held(town: Town, served: traffic.Served, sniffer: Sniffer) -> None:
    """Assert that captured traffic of node one is refused at once, and seen by nobody."""
    came = len(served.peers)
    for caller in ("web", "front"):
        with trio.fail_after(2):
            with not_even_once():
                assert not await carried(town, caller)
    sniffer.drain()
    with not_even_once():
        assert (sniffer.leaks.clear, sniffer.lost) == (0, 0)
        assert len(served.peers) == came
    assert await tables(town) == [1, 1]


async def works_again(town: Town) -> None:
    """Assert that both kinds of workload are carried once more, by exactly one table each."""
    for caller in ("web", "front"):
        assert await carried(town, caller)
    assert await tables(town) == [1, 1]


async def restart(town: Town) -> None:
    await town.mesh.start_agent(town.node("one"))
    await town.mesh.settled()


async def test_held_when_stopped(town: Town) -> None:
    async with db_serves(town) as (served, sniffer):
        await works_again(town)
        process = town.node("one").process
        assert process is not None
        await process.end(grace=10)
        await held(town, served, sniffer)
        await restart(town)
        await works_again(town)
        sniffer.drain()
        with not_even_once():
            assert sniffer.leaks.clear == 0


async def test_held_when_killed(town: Town) -> None:
    async with db_serves(town) as (served, sniffer):
        process = town.node("one").process
        assert process is not None
        await process.kill()
        assert await eventually(lambda: not any(15100 <= p <= 15999 for p in _listening(town)), 10)
        await held(town, served, sniffer)
        await restart(town)
        await works_again(town)


def _listening(town: Town) -> set[int]:
    """Ports listened on in the host namespace of node one."""
    text = town.one.namespace.run(Path("/proc/thread-self/net/tcp").read_text)
    rows = [line.split() for line in text.splitlines()[1:]]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


async def test_held_when_a_start_fails(town: Town) -> None:
    """Somebody sits on the tunnel port: the agent says so and ends, and the rules stay as they were."""
    async with db_serves(town) as (served, sniffer):
        node = town.node("one")
        assert node.process is not None
        await node.process.end(grace=10)
        with town.one.namespace.socket() as squatter:
            squatter.bind(("0.0.0.0", 15008))
            squatter.listen()
            ran = await town.mesh.try_on(node, "agent", "run")
            assert not ran.ok
            said = ran.errors + ran.output.decode()
            assert "15008" in said
            assert "Traceback" not in said, said
            await held(town, served, sniffer)
        await restart(town)
        await works_again(town)


async def test_restored_after_a_foreign_flush(town: Town) -> None:
    async with db_serves(town):
        await works_again(town)
        for namespace in (town.one.namespace, town["front"].place.namespace):
            await nft(namespace, "flush", "ruleset")
        with trio.fail_after(5):
            while await tables(town) != [1, 1]:
                pass
        await works_again(town)


async def test_capture_off_takes_everything_away_and_on_brings_it_back(town: Town) -> None:
    async with db_serves(town) as (served, sniffer):
        node = town.node("one")
        await nft(town.one.namespace, "add", "table", "inet", "somebody_else")
        await town.mesh.on(node, "capture", "off")
        assert await tables(town) == [0, 0]
        assert "somebody_else" in await nft(town.one.namespace, "list", "tables")
        # The counter is seen counting: with capture off, the same exchange is there for all to read.
        came = len(served.peers)
        assert await carried(town)
        sniffer.drain()
        assert sniffer.leaks.clear == 2 * len(MARKER)
        assert len(served.peers) == came + 1
        await town.mesh.on(node, "capture", "on")
        await works_again(town)
        sniffer.restart(MARKER)
        assert await carried(town)
        sniffer.drain()
        with not_even_once():
            assert sniffer.leaks.clear == 0
        await nft(town.one.namespace, "delete", "table", "inet", "somebody_else")


async def test_capture_off_works_without_the_agent(town: Town) -> None:
    async with db_serves(town):
        node = town.node("one")
        assert node.process is not None
        await node.process.kill()
        await town.mesh.on(node, "capture", "off")
        assert await tables(town) == [0, 0]
        await restart(town)
        assert await tables(town) == [0, 0]  # a restart does not overrule the operator
        await town.mesh.on(node, "capture", "on")
        await works_again(town)


async def test_the_rescue_line_works_without_us(town: Town) -> None:
    """For an agent that neither answers nor ends: it is killed first."""
    async with db_serves(town) as (served, _):
        process = town.node("one").process
        assert process is not None
        process.signal(signal.SIGSTOP)
        await process.kill()
        await nft(town.one.namespace, "delete", "table", "inet", "culvert")
        came = len(served.peers)
        assert await carried(town)
        assert len(served.peers) == came + 1
        await restart(town)
        await works_again(town)


async def test_unenrolling_ends_capture_and_enrolling_begins_it_within_a_second(town: Town) -> None:
    async with db_serves(town) as (served, sniffer):
        await town.mesh.label("shop/web", mesh=None)
        sniffer.restart(MARKER)
        assert await carried(town)
        sniffer.drain()
        assert sniffer.leaks.clear == 2 * len(MARKER)
        db = town["db"]
        old = await traffic.dial(town["web"].place, db.address, db.port)
        await old.send_all(b"before")
        assert await traffic.read_exactly(old, 6) == b"before"
        await town.mesh.operator("label", "workload", "shop/web", "mesh=on")
        begin = trio.current_time()
        while True:
            sniffer.restart(MARKER)
            assert await carried(town)
            sniffer.drain()
            if sniffer.leaks.clear == 0:
                break
            assert trio.current_time() < begin + 10
        # A second is promised; a machine with more to do than it can is given more.
        assert trio.current_time() - begin < max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        assert served.peers
        # What was there before goes on as it was.
        await old.send_all(b"after")
        assert await traffic.read_exactly(old, 5) == b"after"
        await old.aclose()


async def test_leaving_takes_everything_away(town: Town) -> None:
    """Last: the node is gone afterwards."""
    node = town.node("one")
    await town.mesh.on(node, "agent", "leave")
    assert await town.mesh.gone(node)
    assert await tables(town) == [0, 0]
    assert list((node.directory / "state").glob("**/*.pem")) == []
