"""What a connection keeps of itself between Envoy and us: bytes, order, ends, resets."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from agent.connections import Verdict
from tests.interop.scene import DOMAIN, Lane, Scene, identity
from tests.netns import talks, traffic

MEGABYTE = 10**6
BOTH = pytest.mark.parametrize("name", ["us plain", "envoy plain"])


@asynccontextmanager
async def conversation(lane: Lane, handler: traffic.Handler) -> AsyncIterator[trio.SocketStream]:
    """One connection over a lane, `handler` at the far end."""
    with trio.fail_after(30):
        async with (
            traffic.serving(lane.server, lane.served_address, lane.served_port, handler),
            await traffic.dial(lane.caller, lane.address, lane.port) as stream,
        ):
            yield stream


@pytest.mark.parametrize(("name", "server"), [("us plain", "db"), ("us six", "six")])
async def test_envoy_calls_us(scene: Scene, name: str, server: str) -> None:
    lane = scene.lane(name)
    async with conversation(lane, traffic.echo) as stream:
        await stream.send_all(b"over the fence")
        await stream.send_eof()
        assert await traffic.read_all(stream) == b"over the fence"
    record = await scene.worker.record(lane.served_port)
    assert (record.source.identity, record.source.workload) == (str(identity("till")), "")
    assert (record.destination.identity, record.destination.workload) == (str(identity(server)), f"shop/{server}")
    assert (record.verdict, record.reason) == (Verdict.ALLOWED, "")
    assert (record.sent, record.received) == (14, 14)


async def test_we_call_envoy(scene: Scene) -> None:
    """What Envoy saw of us is what is frozen of our requests: server name, authority, fields, TLS."""
    lane = scene.lane("envoy plain")
    async with conversation(lane, traffic.echo) as stream:
        await stream.send_all(b"over the fence")
        await stream.send_eof()
        assert await traffic.read_all(stream) == b"over the fence"
    record = await scene.worker.record(lane.served_port)
    assert (record.verdict, record.reason) == (Verdict.ALLOWED, "")
    assert (record.sent, record.received) == (14, 14)
    seen = await scene.envoy.said("door plain", forwarded=f'for="{record.source.address}"')
    assert seen["authority"] == f"{scene.theirs.address}:{lane.port}"
    assert seen["method"] == "CONNECT"
    assert seen["baggage"] == "k8s.namespace.name=shop,service.name=web"
    assert seen["traceparent"].startswith(f"00-{record.trace}-")
    assert seen["server_name"] == identity("bank").sni
    assert seen["peer"] == f"spiffe://{DOMAIN}/ns/shop/sa/web"
    assert seen["tls"].startswith("TLSv1.3 TLS_AES_")
    assert seen["status"] == 200


@pytest.mark.parametrize("name", ["us plain", "us small", "envoy plain", "envoy small"])
async def test_a_hundred_megabytes_each_way(scene: Scene, name: str) -> None:
    """`small`: Envoy's windows, of streams and of the connection, are the protocol's 64 KiB."""
    await talks.each_way(partial(conversation, scene.lane(name)), 100 * MEGABYTE)


@pytest.mark.parametrize("name", ["us plain", "us small", "envoy plain", "envoy small"])
async def test_both_ways_at_once(scene: Scene, name: str) -> None:
    await talks.both_ways_at_once(partial(conversation, scene.lane(name)), 20 * MEGABYTE)


@BOTH
async def test_the_server_speaks_first(scene: Scene, name: str) -> None:
    async with conversation(scene.lane(name), traffic.greet(b"220 ready")) as stream:
        assert await traffic.read_exactly(stream, 9) == b"220 ready"
        await stream.send_all(b"EHLO")
        assert await traffic.read_exactly(stream, 4) == b"EHLO"


@BOTH
async def test_two_hundred_at_once(scene: Scene, name: str) -> None:
    lane = scene.lane(name)
    count, arrived = 200, 0
    together = trio.Event()
    answers: list[bytes] = []

    async def wait_for_all(stream: trio.SocketStream) -> None:
        nonlocal arrived
        arrived += 1
        if arrived == count:
            together.set()
        await together.wait()
        await traffic.echo(stream)

    async def one(number: int) -> None:
        answers.append(await traffic.ask(lane.caller, lane.address, lane.port, b"%d" % number * 999, seconds=20))

    async with (
        traffic.serving(lane.server, lane.served_address, lane.served_port, wait_for_all),
        trio.open_nursery() as nursery,
    ):
        for number in range(count):
            nursery.start_soon(one, number)
    assert sorted(answers) == sorted(b"%d" % number * 999 for number in range(count))
    records = [await scene.worker.record(lane.served_port, skip) for skip in range(count)]
    assert len({record.tunnel for record in records}) == 1


@BOTH
async def test_the_caller_ends_first_and_still_hears_the_answer(scene: Scene, name: str) -> None:
    lane = scene.lane(name)

    async def answer_after_end(stream: trio.SocketStream) -> None:
        text = await traffic.read_all(stream)
        await traffic.send_pattern(stream, MEGABYTE)
        await stream.send_all(text)

    async with conversation(lane, answer_after_end) as stream:
        await stream.send_all(b"all of it")
        await stream.send_eof()
        answer = await traffic.read_all(stream)
    assert len(answer) == MEGABYTE + 9
    assert answer.endswith(b"all of it")
    record = await scene.worker.record(lane.served_port)
    assert (record.verdict, record.reason) == (Verdict.ALLOWED, "")


async def test_our_server_ends_first_and_still_hears_the_rest(scene: Scene) -> None:
    heard: list[tuple[bytes, int]] = []
    done = trio.Event()

    async def end_first(stream: trio.SocketStream) -> None:
        await traffic.send_pattern(stream, MEGABYTE)
        await stream.send_eof()
        heard.append(await traffic.drain(stream))
        done.set()

    async with conversation(scene.lane("us plain"), end_first) as stream:
        assert len(await traffic.read_all(stream)) == MEGABYTE
        sent = await traffic.send_pattern(stream, MEGABYTE)
        await stream.send_eof()
        await done.wait()
    assert heard == [(sent, MEGABYTE)]


async def test_behind_envoy_a_server_that_ends_first_is_heard_to_its_end(scene: Scene) -> None:
    """Envoy ends the whole stream then (END_STREAM, RST_STREAM NO_ERROR): the caller reads all, and can say no more."""
    lane = scene.lane("envoy plain")
    size = 100_000

    async def end_first(stream: trio.SocketStream) -> None:
        await traffic.send_pattern(stream, size)
        await stream.send_eof()
        await traffic.drain(stream)

    async with conversation(lane, end_first) as stream:
        # Everything, the reset too, has reached our worker before the caller reads.
        record = await scene.worker.record(lane.served_port)
        assert len(await traffic.read_all(stream)) == size
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - until the kernel has the answer to the first
            while True:
                await stream.send_all(b"but not from me")
    assert (record.verdict, record.reason, record.received) == (Verdict.ALLOWED, "", size)


async def test_what_envoy_cuts_off_is_never_a_clean_end(scene: Scene) -> None:
    """When a server ends first, Envoy drops what flow control kept it from sending, and resets: INTERNAL_ERROR."""
    lane = scene.lane("envoy plain")
    size = 20 * MEGABYTE
    read = 0

    async def end_first(stream: trio.SocketStream) -> None:
        await traffic.send_pattern(stream, size)

    async with conversation(lane, end_first) as stream:
        try:
            while data := await stream.receive_some():
                read += len(data)
        except trio.BrokenResourceError:
            return
    assert read == size


@pytest.mark.parametrize("name", ["us plain", "envoy plain"])
async def test_a_reset_by_the_caller(scene: Scene, name: str) -> None:
    """It arrives as one through us. Envoy makes a clean end of it, whatever the code of our RST_STREAM."""
    lane = scene.lane(name)
    to, at = (lane.address, lane.port), (lane.served_address, lane.served_port)
    end = await talks.reset_by_the_caller(lane.caller, to, lane.server, at)
    if name == "us plain":
        assert isinstance(end, ConnectionResetError)
    else:
        assert end == b""
    record = await scene.worker.record(lane.served_port)
    assert "reset" in record.reason


@BOTH
async def test_a_reset_by_the_server_arrives_as_a_reset(scene: Scene, name: str) -> None:
    lane = scene.lane(name)
    await talks.reset_by_the_server(partial(conversation, lane))
    record = await scene.worker.record(lane.served_port)
    assert "reset" in record.reason
