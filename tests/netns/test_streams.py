"""What a carried connection keeps of a TCP connection: bytes, order, ends, resets, pressure; and what it costs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from agent.lab.process import eventually
from tests.netns import talks, traffic
from tests.netns.town import Town

WORKERS = 1
"""So that everything between two workloads shares one tunnel."""

MEGABYTE = 10**6


@pytest.mark.parametrize("caller", ["web", "front"])
@pytest.mark.parametrize("server", ["db", "store"])
async def test_a_hundred_megabytes_each_way(town: Town, caller: str, server: str) -> None:
    with trio.fail_after(100):
        await talks.each_way(partial(town.conversation, caller, server), 100 * MEGABYTE)


async def test_both_ways_at_once(town: Town) -> None:
    with trio.fail_after(60):
        await talks.both_ways_at_once(partial(town.conversation, "web", "db"), 30 * MEGABYTE)


async def test_the_caller_ends_first_and_still_hears_the_answer(town: Town) -> None:

    async def answer_after_end(stream: trio.SocketStream) -> None:
        text = await traffic.read_all(stream)
        await stream.send_all(b"you said " + text)

    async with town.conversation("web", "db", answer_after_end) as stream:
        await stream.send_all(b"all of it")
        await stream.send_eof()
        assert await traffic.read_all(stream) == b"you said all of it"


async def test_the_server_ends_first_and_still_hears_the_rest(town: Town) -> None:
    heard: list[bytes] = []
    done = trio.Event()

    async def end_first(stream: trio.SocketStream) -> None:
        await stream.send_all(b"that was all from me")
        await stream.send_eof()
        heard.append(await traffic.read_all(stream))
        done.set()

    with trio.fail_after(10):
        async with town.conversation("web", "db", end_first) as stream:
            assert await traffic.read_all(stream) == b"that was all from me"
            await stream.send_all(b"but not from me")
            await stream.send_eof()
            await done.wait()
    assert heard == [b"but not from me"]


async def test_a_reset_by_the_caller_arrives_as_a_reset(town: Town) -> None:
    db = town["db"]
    at = db.address, db.port
    assert isinstance(await talks.reset_by_the_caller(town["web"].place, at, db.server, at), ConnectionResetError)


async def test_a_reset_by_the_server_arrives_as_a_reset(town: Town) -> None:
    await talks.reset_by_the_server(partial(town.conversation, "web", "db"))


async def test_nobody_listening_is_a_reset_with_a_reason(town: Town) -> None:
    """It may come after connect() has succeeded: the agent accepted. See ARCHITECTURE.md on health checks."""
    db = town["db"]
    assert await traffic.refused(town["web"].place, db.address, db.port)
    record = await town.record("one", destination__workload="shop/db", verdict="failed")
    assert record["reason"]


async def test_two_hundred_streams_share_one_tunnel(town: Town) -> None:
    db = town["db"]
    count = 200
    together = trio.Event()
    arrived = 0

    async def wait_for_all(stream: trio.SocketStream) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == count:
            together.set()
        await together.wait()
        await traffic.echo(stream)

    answers: list[bytes] = []

    async def one(number: int) -> None:
        answers.append(await traffic.ask(town["web"].place, db.address, db.port, b"%d" % number, seconds=30))

    async with traffic.serving(db.server, db.address, db.port, wait_for_all), trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
        with trio.fail_after(30):
            await together.wait()
    assert sorted(answers) == sorted(b"%d" % n for n in range(count))
    tunnels = (await town.mesh.ask(town.node("one"), "tunnels"))["rows"]
    ours = [
        t
        for t in tunnels
        if t["direction"] == "outbound"
        and (t["local_identity"], t["peer_identity"]) == (town["web"].identity, db.identity)
    ]
    assert len(ours) == 1, ours
    assert ours[0]["carried"] >= count


async def test_stalled_readers_cost_a_live_one_little_and_memory_is_bounded(town: Town) -> None:
    """Half of the stalled are servers that take nothing, half callers that do; all are in the live one's tunnel."""
    db = town["db"]
    size = 64 * MEGABYTE

    async def serve(stream: trio.SocketStream) -> None:
        match await traffic.read_exactly(stream, 1):
            case b"s":  # takes no more
                await trio.sleep_forever()
            case b"p":  # sends for ever to one who takes nothing
                while True:
                    await stream.send_all(traffic.BLOCK)
            case b"l":
                digest, length = await traffic.drain(stream)
                await stream.send_all(digest + length.to_bytes(8))

    async def live() -> float:
        begin = trio.current_time()
        async with await traffic.dial(town["web"].place, db.address, db.port) as stream:
            await stream.send_all(b"l")
            sent = await traffic.send_pattern(stream, size)
            await stream.send_eof()
            assert await traffic.read_all(stream) == sent + size.to_bytes(8)
        return size / (trio.current_time() - begin)

    async def push(stream: trio.SocketStream) -> None:
        while True:
            await stream.send_all(traffic.BLOCK)

    @asynccontextmanager
    async def stalled() -> AsyncIterator[None]:
        streams = []
        async with trio.open_nursery() as nursery:
            for number in range(100):
                stream = await traffic.dial(town["web"].place, db.address, db.port)
                await stream.send_all(b"sp"[number % 2 : number % 2 + 1])
                streams.append(stream)
                if number % 2 == 0:
                    nursery.start_soon(push, stream)
            yield
            nursery.cancel_scope.cancel()
        for stream in streams:
            await trio.aclose_forcefully(stream)

    with trio.fail_after(110):
        async with traffic.serving(db.server, db.address, db.port, serve):
            await live()  # warms the tunnel and the programs
            ratios = []
            for _ in range(4):  # other programs of the machine disturb a measurement, so it has more than one chance
                solo = max([await live() for _ in range(3)])
                before = _memory(town)
                async with stalled():
                    held = await _settled_memory(town)
                    beside = max([await live() for _ in range(3)])
                    after = _memory(town)
                for grown in (held - before, after - before):
                    assert grown < 200 * MEGABYTE, f"agents grew by {grown / 1e6:.0f} MB"
                ratios.append(beside / solo)
                if ratios[-1] >= 0.8:
                    break
    assert ratios[-1] >= 0.8, ratios


async def _settled_memory(town: Town) -> int:
    """Memory once it has stopped growing for a second, or after ten."""
    last, still = _memory(town), 0
    for _ in range(40):
        await trio.sleep(0.25)
        now = _memory(town)
        still = still + 1 if abs(now - last) < MEGABYTE else 0
        last = now
        if still == 4:
            break
    return last


def _memory(town: Town) -> int:
    """Bytes of private memory of all processes of both agents."""
    total = 0
    for node in town.mesh.nodes.values():
        assert node.process is not None
        for pid in (node.process.pid, *children(node.process.pid)):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Private_"):
                    total += int(line.split()[1]) * 1024
    return total


def children(pid: int) -> list[int]:
    """The processes that `pid` has started."""
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


async def test_descriptors_come_back(town: Town) -> None:
    """After two thousand connections the agents hold as many descriptors as before."""
    db = town["db"]

    async def some(count: int) -> None:
        for _ in range(count):
            assert await traffic.ask(town["web"].place, db.address, db.port) == b"ping"

    async with traffic.serving(db.server, db.address, db.port, traffic.echo):
        await some(20)
        before = _descriptors(town)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(some, 100)
        assert await eventually(lambda: _descriptors(town) <= before + 8), (before, _descriptors(town))


def _descriptors(town: Town) -> int:
    total = 0
    for node in town.mesh.nodes.values():
        assert node.process is not None
        for pid in (node.process.pid, *children(node.process.pid)):
            total += len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return total
