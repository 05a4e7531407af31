"""Connections through a tunnel, one thing after another."""

import gc
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
import trio

from agent.connections import Verdict
from agent.relay.leg import EARLY, Leg
from agent.relay.loop import READABLE
from agent.tunnel import frames
from agent.tunnel.headers import BlockWriter
from tests.agent.relay import talks
from tests.agent.relay.rig import receive, receive_all, reset, rig, send, soon

BULK = bytes(range(256)) * 4096 * 3


async def test_there_and_back():
    async with rig() as r:
        conn = await r.connect()
        await send(conn.near, b"hello")
        assert await receive(conn.far, 5) == b"hello"
        await send(conn.far, b"to you")
        assert await receive(conn.near, 6) == b"to you"
        await talks.end(conn)
        await r.idle()
        (near,), (far,) = r.source.closed(), r.target.closed()
        assert (near.sent, near.received) == (far.sent, far.received) == (5, 6)
        assert near.verdict is far.verdict is Verdict.ALLOWED


@pytest.mark.parametrize("end", ["both halves", "reset"])
async def test_what_has_ended_leaves_nothing_for_the_garbage_collector(end):
    async with rig() as r:
        gc.collect()
        gc.disable()
        try:
            conn = await r.connect()
            await send(conn.near, b"hello")
            assert await receive(conn.far, 5) == b"hello"
            assert _legs() == 2
            if end == "reset":
                reset(conn.near)
            else:
                conn.near.shutdown(socket.SHUT_WR)
                conn.far.shutdown(socket.SHUT_WR)
            await r.idle()
            assert _legs() == 0
        finally:
            gc.enable()


def _legs() -> int:
    return sum(type(o) is Leg for o in gc.get_objects())


async def test_the_server_speaks_first():
    async with rig() as r:
        conn = await r.connect()
        await send(conn.far, b"220 ready")
        assert await receive(conn.near, 9) == b"220 ready"


@pytest.mark.parametrize("first", ["near", "far"])
async def test_half_close_first_then_bulk_the_other_way(first):
    async with rig() as r:
        await talks.half_close_then_bulk(await r.connect(), first, BULK)


@pytest.mark.parametrize("who", ["near", "far"])
async def test_what_follows_an_urgent_byte_is_not_left_lying(who):
    """The kernel has a read stop there, as if the socket were empty. The byte itself is no part of the stream."""
    async with rig() as r:
        conn = await r.connect()
        sender, receiver = (conn.near, conn.far) if who == "near" else (conn.far, conn.near)
        plain = socket.socket(fileno=os.dup(sender.fileno()))
        for _ in range(3):
            plain.send(b"before")
            plain.send(b"!", socket.MSG_OOB)
            plain.send(b"behind")
            assert await receive(receiver, 12) == b"beforebehind"
        plain.close()


async def test_bulk_both_ways_at_once():
    async with rig() as r:
        await talks.both_ways_at_once(await r.connect(), BULK)


@pytest.mark.parametrize("who", ["near", "far"])
@pytest.mark.parametrize("after", [b"", b"some bytes", b"bulk" * 2**18])
async def test_a_reset_is_seen_as_a_reset(who, after):
    async with rig() as r:
        conn = await r.connect()
        one, other = (conn.near, conn.far) if who == "near" else (conn.far, conn.near)
        await send(one, after)
        reset(one)
        with pytest.raises(ConnectionResetError):
            await receive_all(other)


@pytest.mark.parametrize("who", ["near", "far"])
async def test_a_reset_after_a_half_close_is_still_a_reset(who):
    async with rig() as r:
        conn = await r.connect()
        one, other = (conn.near, conn.far) if who == "near" else (conn.far, conn.near)
        one.shutdown(socket.SHUT_WR)
        assert await receive_all(other) == b""
        reset(one)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 - until the reset is there
            while True:
                await send(other, b"is anybody there?")
                await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("code", [frames.NO_ERROR, frames.INTERNAL_ERROR])
async def test_a_peer_that_ends_and_resets_in_one_breath(code):
    """Stock proxies do so when the server ends first: NO_ERROR is a clean end, and whoever reads slowly gets it all."""
    async with rig() as r:
        conn = r.call(sndbuf=4096)
        await r.accept(conn)
        await soon(lambda: conn.far_entry.state == "open")
        leg, stream = conn.far_entry.carrier, r.into.core.streams[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, conn.far, BULK[:200_000])
            await soon(lambda: leg.received == 200_000)
        r.into.core.end(stream)
        r.into.core.reset(stream, code)
        r.into.touch()
        await soon(lambda: not r.out.core.streams)
        leg.abort()
        if code == frames.NO_ERROR:
            assert await receive_all(conn.near) == BULK[:200_000]
            with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 - until the reset is there
                while True:
                    await send(conn.near, b"is anybody there?")
                    await trio.lowlevel.checkpoint()
        else:
            with pytest.raises(ConnectionResetError):
                await receive_all(conn.near)
        await r.idle()
        (near,) = r.source.closed()
        assert near.reason == ("" if code == frames.NO_ERROR else "reset by the other side")


async def test_who_is_not_listened_to_any_more_gets_every_byte_all_the_same():
    """What it had sent lies unread in our socket, and its answer in part unsent."""
    async with rig() as r:
        conn = r.call(sndbuf=4096)
        await r.accept(conn)
        await soon(lambda: conn.far_entry.state == "open" and conn.near_entry.state == "open")
        leg, stream = conn.far_entry.carrier, r.into.core.streams[1]
        r.out.core.streams[1].send_window = 0
        await send(conn.near, b"not read by anybody")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, conn.far, BULK[:200_000])
            await soon(lambda: leg.received == 200_000)
        r.into.core.end(stream)
        r.into.core.reset(stream, frames.NO_ERROR)
        r.into.touch()
        await soon(lambda: not r.out.core.streams)
        leg.abort()
        assert await receive_all(conn.near) == BULK[:200_000]
        await r.idle()


@contextmanager
def busy() -> Iterator[tuple[socket.socket, Callable[[], None]]]:
    """A listener whose queue is full, so that connecting to it takes until it is emptied."""
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        fillers = [stack.enter_context(socket.socket()) for _ in range(2)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())

        def empty() -> None:
            for filler in fillers:
                filler.close()  # or it would take the next place
            full.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    full.accept()[0].close()

        yield full, empty


async def test_a_bulk_flow_has_one_turn_more_in_a_round_however_often_it_is_ready(monkeypatch):
    async with rig() as r:
        conn = await r.connect()
        await soon(lambda: conn.near_entry.state == "open")
        leg = conn.near_entry.carrier
        conn.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**21)
        written = os.write(conn.near.fileno(), bytes(2**18))
        assert written > 150_000
        turns = []
        pump = Leg.pump
        monkeypatch.setattr(Leg, "pump", lambda leg: turns.append(leg) or pump(leg))
        for _ in range(3):  # and nothing else runs meanwhile
            leg._ready(READABLE)
        assert leg._readable
        turns.clear()
        r.source.relay._round()
        assert turns.count(leg) <= 2
        await receive(conn.far, written)
        await talks.end(conn)
        await r.idle()


async def test_any_answer_of_success_opens_it(monkeypatch):
    monkeypatch.setattr(BlockWriter, "status", lambda writer, _status: writer._start(b"\x08\x03202"))
    async with rig() as r:
        conn = await r.connect()
        await talks.both_ways_at_once(conn, b"data" * 5000)
        assert conn.near_entry.state == "open"
        await talks.end(conn)
        await r.idle()


async def test_early_data_is_bounded_until_the_answer():
    with busy() as (workload, _):
        async with rig() as r:
            await soon(lambda: r.out.core.settled)
            conn = r.call(to=workload.getsockname())
            async with trio.open_nursery() as nursery:
                nursery.start_soon(send, conn.near, b"early" * 2**16)
                await soon(lambda: conn.near_entry.carrier.sent >= EARLY)
                for _ in range(50):
                    await trio.lowlevel.checkpoint()
                assert conn.near_entry.carrier.sent == EARLY
                nursery.cancel_scope.cancel()
            reset(conn.near)


async def test_early_data_and_an_end_wait_for_a_workload_that_is_slow_to_accept():
    with busy() as (workload, empty):
        async with rig() as r:
            conn = r.call(to=workload.getsockname())
            await send(conn.near, b"data" * 10000 + b"end")
            conn.near.shutdown(socket.SHUT_WR)
            await soon(lambda: 1 in r.into.core.streams and r.into.core.streams[1].ended_there)
            assert conn.far_entry.state == "opening"
            empty()
            await soon(lambda: conn.far_entry.state == "open")  # with the next SYN, after a second
            far = trio.socket.from_stdlib_socket(workload.accept()[0])
            assert await receive_all(far) == b"data" * 10000 + b"end"
            far.close()
            assert await receive_all(conn.near) == b""


@pytest.mark.parametrize(
    ("status", "verdict", "words"),
    [
        (400, Verdict.REFUSED, "400"),
        (401, Verdict.REFUSED, "refused by policy"),
        (403, Verdict.REFUSED, "403"),
        (503, Verdict.FAILED, "503"),
    ],
)
@pytest.mark.parametrize("early", [b"", b"x" * 70000])
async def test_an_answer_other_than_200_is_a_reset(status, verdict, words, early):
    async with rig() as r:
        r.refuse = status
        conn = r.call()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 - whichever comes first
            await send(conn.near, early)
            await receive_all(conn.near)
        await r.idle()
        (record,) = r.source.closed()
        assert record.verdict is verdict
        assert words in record.reason
        # The tunnel goes on, and is empty on both sides.
        r.refuse = 0
        other = await r.connect()
        await send(other.near, b"next")
        assert await receive(other.far, 4) == b"next"
        assert len(r.out.core.streams) == len(r.into.core.streams) == 1


async def test_a_workload_that_does_not_accept():
    async with rig() as r:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            nobody = gone.getsockname()
        conn = r.call(to=nobody)
        with pytest.raises(ConnectionResetError):
            await receive_all(conn.near)
        await r.idle()
        (near,), (far,) = r.source.closed(), r.target.closed()
        assert near.verdict is far.verdict is Verdict.FAILED
        assert "does not accept" in near.reason
        assert "refused" in far.reason.lower()


async def test_reset_before_the_workload_has_accepted():
    with busy() as (workload, _):
        async with rig() as r:
            conn = r.call(to=workload.getsockname())
            await soon(lambda: len(r.target.book.live) == 1)
            reset(conn.near)
            await r.idle()
            (far,) = r.target.closed()
            assert far.reason == "reset by the other side"


async def test_giving_up_a_workload_that_does_not_answer():
    with busy() as (workload, _):
        async with rig() as r:
            conn = r.call(to=workload.getsockname())
            await r.target.news.until(lambda: len(r.target.book.live) == 1)
            r.target.book.expire(-1)
            with pytest.raises(ConnectionResetError):
                await receive_all(conn.near)
            await r.idle()
            (near,), (far,) = r.source.closed(), r.target.closed()
            assert near.verdict is far.verdict is Verdict.FAILED
            assert "503" in near.reason


async def test_a_policy_that_changes_before_the_workload_has_answered():
    with busy() as (workload, _):
        async with rig() as r:
            conn = r.call(to=workload.getsockname())
            await r.target.news.until(lambda: len(r.target.book.live) == 1)
            (entry,) = r.target.book.live.values()
            entry.carrier.abort("denied by policy shop/new rule 1")
            with pytest.raises(ConnectionResetError):
                await receive_all(conn.near)
            await r.idle()
            (near,), (far,) = r.source.closed(), r.target.closed()
            assert near.verdict is far.verdict is Verdict.REFUSED
            assert "401" in near.reason


@pytest.mark.parametrize("ask", ["refused", "accepted"])
async def test_a_request_that_ends_at_once(ask):
    """HEADERS, DATA and END_STREAM in one read, before the other side has looked at any of it."""
    async with rig() as r:
        r.refuse = 503 if ask == "refused" else 0
        conn = r.call()
        await send(conn.near, b"x" * 1000)
        conn.near.shutdown(socket.SHUT_WR)
        if ask == "refused":
            with pytest.raises(ConnectionResetError):
                await receive_all(conn.near)
        else:
            assert await receive_all(await r.accept(conn)) == b"x" * 1000


async def test_both_ends_close_at_the_same_time():
    async with rig() as r:
        conns = [await r.connect() for _ in range(20)]
        for conn in conns:
            await send(conn.near, b"bye")
            await send(conn.far, b"bye")
            conn.near.shutdown(socket.SHUT_WR)
            conn.far.shutdown(socket.SHUT_WR)
        for conn in conns:
            assert await receive_all(conn.near) == await receive_all(conn.far) == b"bye"


async def test_two_hundred_at_once():
    async with rig() as r:
        await r.source.news.until(lambda: r.out.core.settled)
        conns = [r.call() for _ in range(200)]
        assert len(r.out.core.streams) == 200

        async def echo(conn) -> None:
            far = await r.accept(conn)
            while data := await far.recv(65536):
                await send(far, data)
            far.shutdown(socket.SHUT_WR)

        async def talk(i, conn) -> None:
            body = i.to_bytes(2, "big") * 5000
            await send(conn.near, body)
            conn.near.shutdown(socket.SHUT_WR)
            assert await receive_all(conn.near) == body

        async with trio.open_nursery() as nursery:
            for i, conn in enumerate(conns):
                nursery.start_soon(echo, conn)
                nursery.start_soon(talk, i, conn)
        await r.idle()
        assert not r.out.core.streams
        assert r.out.core.carried == 200


async def test_abort_ends_both_ways_with_a_reset_and_its_reason():
    async with rig() as r:
        conn = await r.connect()
        conn.far_entry.carrier.abort("policy changed")
        for end in (conn.near, conn.far):
            with pytest.raises(ConnectionResetError):
                await receive_all(end)
        await r.idle()
        (far,) = r.target.closed()
        assert (far.verdict, far.reason) == (Verdict.REFUSED, "policy changed")
        (near,) = r.source.closed()
        assert near.reason == "reset by the other side"
