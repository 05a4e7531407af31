"""Tunnels between Envoy and us as a whole: how many, for how long, and what happens when one ends."""

import signal

import pytest
import trio

from agent.connections import Verdict
from agent.messages import Drain
from tests.interop.scene import Lane, Scene
from tests.netns import traffic


class Crowd:
    """Many connections over one lane, all open at the same time."""

    def __init__(self, lane: Lane, count: int) -> None:
        self._lane, self._count = lane, count
        self._arrived = 0
        self._together = trio.Event()
        self.answers: list[bytes] = []

    async def meet(self, seconds: float = 30) -> None:
        """Open them all, have each served only when all are there, and end them."""
        lane = self._lane
        async with (
            traffic.serving(lane.server, lane.served_address, lane.served_port, self._serve),
            trio.open_nursery() as nursery,
        ):
            for number in range(self._count):
                nursery.start_soon(self._one, number, seconds)
        assert sorted(self.answers) == sorted(b"%d" % number for number in range(self._count))

    async def _serve(self, stream: trio.SocketStream) -> None:
        self._arrived += 1
        if self._arrived == self._count:
            self._together.set()
        await self._together.wait()
        await traffic.echo(stream)

    async def _one(self, number: int, seconds: float) -> None:
        lane = self._lane
        self.answers.append(await traffic.ask(lane.caller, lane.address, lane.port, b"%d" % number, seconds))


async def test_more_streams_than_envoy_takes_on_one_connection(scene: Scene) -> None:
    """It takes four. What we dialled once is used again."""
    lane = scene.lane("envoy narrow")
    for start in (0, 22):
        await Crowd(lane, 22).meet()
        tunnels = [(await scene.worker.record(lane.port, start + n)).tunnel for n in range(22)]
        assert len(set(tunnels)) == 6
        assert max(tunnels.count(tunnel) for tunnel in tunnels) == 4
    assert len({(await scene.worker.record(lane.port, n)).tunnel for n in range(44)}) == 6


async def test_more_streams_than_we_take_on_one_connection(scene: Scene) -> None:
    """We take a thousand, and Envoy obeys."""
    lane = scene.lane("us plain")
    count = 1010
    await Crowd(lane, count).meet(seconds=60)
    records = [await scene.worker.record(lane.served_port, n) for n in range(count)]
    tunnels = [record.tunnel for record in records]
    assert {record.verdict for record in records} == {Verdict.ALLOWED}
    assert len(set(tunnels)) == 2
    assert max(tunnels.count(tunnel) for tunnel in tunnels) <= 1000


async def test_envoy_sends_goaway_after_a_few_streams(scene: Scene) -> None:
    """After three requests, here. What is open goes on, what comes takes another tunnel, nobody notices."""
    lane = scene.lane("envoy brief")
    with trio.fail_after(30):
        async with (
            traffic.serving(lane.server, lane.served_address, lane.served_port, traffic.echo),
            await traffic.dial(lane.caller, lane.address, lane.port) as held,
        ):
            await held.send_all(b"first")
            assert await traffic.read_exactly(held, 5) == b"first"
            for number in range(10):
                assert await traffic.ask(lane.caller, lane.address, lane.port, b"%d" % number) == b"%d" % number
            async with trio.open_nursery() as nursery:
                for number in range(10):
                    nursery.start_soon(traffic.ask, lane.caller, lane.address, lane.port, b"%d" % number)
            await held.send_all(b"still here")
            assert await traffic.read_exactly(held, 10) == b"still here"
            await held.send_eof()
            assert await traffic.read_all(held) == b""
    records = [await scene.worker.record(lane.port, n) for n in range(21)]
    assert {(record.verdict, record.reason) for record in records} == {(Verdict.ALLOWED, "")}
    tunnels = [record.tunnel for record in records[:10]]  # those that came one after another
    assert max(tunnels.count(tunnel) for tunnel in tunnels) <= 3


async def test_envoy_drains_and_is_started_again(scene: Scene) -> None:
    """Drained, it lets open connections go on and takes no others; ended, it breaks them, which is no clean end."""
    lane = scene.lane("envoy spare")
    door = [scene.doors["spare"][0]]
    spare = await scene.start_envoy("spare", [], door, 9902)
    with trio.fail_after(30):
        async with (
            traffic.serving(lane.server, lane.served_address, lane.served_port, traffic.echo),
            await traffic.dial(lane.caller, lane.address, lane.port) as held,
        ):
            await held.send_all(b"first")
            assert await traffic.read_exactly(held, 5) == b"first"
            await spare.admin("/drain_listeners?graceful", "POST")
            asked = 1
            while not await traffic.refused(lane.caller, lane.address, lane.port):  # it takes some for a second more
                asked += 1
            assert asked > 1
            await held.send_all(b"still here")
            assert await traffic.read_exactly(held, 10) == b"still here"
            spare.process.signal(signal.SIGTERM)
            with pytest.raises(trio.BrokenResourceError):
                await traffic.read_all(held)
            await spare.process.wait()
            spare = await scene.start_envoy("spare", [], door, 9902)
            assert await traffic.ask(lane.caller, lane.address, lane.port) == b"ping"
    records = [await scene.worker.record(lane.port, n) for n in range(asked + 2)]
    assert len({record.tunnel for record in records[: asked - 1]}) > 1
    refused, broken, after = records[-3:]
    assert refused.verdict is Verdict.FAILED
    assert refused.reason
    assert broken.verdict is Verdict.FAILED
    assert broken.reason == f"the peer at {scene.theirs.address} closed the tunnel"
    assert (after.verdict, after.reason) == (Verdict.ALLOWED, "")
    await spare.process.end()


async def test_we_drain_and_another_worker_takes_over(scene: Scene) -> None:
    """An upgrade, as Envoy's client sees it: GOAWAY, what is open goes on, what comes goes to the new worker."""
    lane = scene.lane("us plain")
    old = scene.worker
    with trio.fail_after(20):
        async with (
            traffic.serving(lane.server, lane.served_address, lane.served_port, traffic.echo),
            await traffic.dial(lane.caller, lane.address, lane.port) as held,
        ):
            await held.send_all(b"first")
            assert await traffic.read_exactly(held, 5) == b"first"
            scene.worker = await scene.start_worker("worker-2", 1)
            await old.say(Drain(10))
            while {t.state for t in (await old.tables()).tunnels if t.streams} != {"draining"}:
                pass
            for number in range(10):
                assert await traffic.ask(lane.caller, lane.address, lane.port, b"%d" % number) == b"%d" % number
                assert (await scene.worker.record(lane.served_port, number)).verdict is Verdict.ALLOWED
            await held.send_all(b"still here")
            assert await traffic.read_exactly(held, 10) == b"still here"
            await held.send_eof()
            assert await traffic.read_all(held) == b""
        assert (await old.record(lane.served_port)).reason == ""
        assert await old.process.wait() == 0
    await old.close()
