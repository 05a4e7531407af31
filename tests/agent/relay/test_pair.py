"""Two sockets joined without a tunnel: the same promises as a leg's."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from hypothesis import HealthCheck, given, settings

import agent.relay.pair
import agent.relay.pipes
from agent.book import Book
from agent.connections import Direction, Party, Security, Verdict
from agent.relay.loop import EDGE, READ, READABLE, WRITE, Relay
from agent.relay.pair import Pair
from agent.relay.pipes import Pipes
from tests.agent.relay import talks
from tests.agent.relay.rig import Conn, News, _Waiting, descriptors, receive, receive_all, reset, send, soon, wire
from tests.agent.relay.test_plans import PLANS, Talk, carry_out
from tests.agent.worker.test_listeners import no_descriptors_left

MIB = 2**20
BULK = bytes(i % 251 for i in range(5 * MIB))


class Joints:
    """Makes pairs, with applications at both ends. Looks like a Rig to a plan."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.relay, self.news = Relay(), News()
        self.book = Book(1, self.news.tell)
        nursery.start_soon(self.relay.run)
        self.conns: list[Conn] = []

    def call(self, *, sndbuf: int = 0, to: tuple[str, int] | None = None, entries: int = 1) -> Conn:
        app, captured = wire(sndbuf, sndbuf)
        listener = None
        if to is None:
            listener = socket.create_server(("127.0.0.1", 0))
            if sndbuf:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, sndbuf)
            to = listener.getsockname()
        dialled = socket.socket()
        dialled.setblocking(False)
        if sndbuf:
            dialled.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
        dialled.connect_ex(to)
        written = [self.book.enter(Direction.OUTBOUND, Security.LOCAL, Party("shop/web")) for _ in range(entries)]
        Pair(self.relay, captured, dialled, self.book, written)
        conn = Conn(trio.socket.from_stdlib_socket(app), _Waiting(listener) if listener else None, written[0])
        self.conns.append(conn)
        return conn

    async def accept(self, conn: Conn) -> trio.socket.SocketType:
        if isinstance(conn.far, _Waiting):
            conn.far = await conn.far.accept()
        return conn.far

    async def connect(self, **more) -> Conn:
        conn = self.call(**more)
        await self.accept(conn)
        return conn

    def closed(self):
        return self.book.take()[0]


@asynccontextmanager
async def joints() -> AsyncIterator[Joints]:
    """At the end it is checked that nothing is left behind but a few spare pipes."""
    before = descriptors()
    async with trio.open_nursery() as nursery:
        both = Joints(nursery)
        try:
            yield both
        except BaseException:
            nursery.cancel_scope.cancel()
            raise
        finally:
            for conn in both.conns:
                conn.close()
        await both.news.until(lambda: not both.book.live)
        assert list(both.relay._handlers) == [both.relay._bell]
        nursery.cancel_scope.cancel()
    spare = both.relay.pipes._spare
    assert all(pipe.held == 0 for pipe in spare)
    for pipe in spare:
        pipe.close()
    assert descriptors() == before


@settings(
    max_examples=settings.default.max_examples // 4,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(PLANS)
async def test_plans(plans):
    talks: list[Talk] = []
    with trio.fail_after(60):
        async with joints() as j, trio.open_nursery() as nursery:
            for number, plan in enumerate(plans):
                nursery.start_soon(carry_out, j, plan, number, talks)
    for talk in talks:
        for way, reader in ((talk.there, "far"), (talk.back, "near")):
            assert way.got <= way.written, talk
            if way.ended == "eof" and reader not in talk.told:
                assert way.finished, f"a clean end that nobody wrote: {talk}"
                assert way.got == way.written, talk
            if not talk.reset:
                assert way.ended == "eof", f"a reset out of nothing: {talk}"


@pytest.mark.parametrize("slow", [0, 4096])
async def test_bulk_both_ways_through_pipes(slow):
    async with joints() as j:
        conn = await j.connect(sndbuf=slow)
        await talks.both_ways_at_once(conn, BULK)
        await send(conn.near, b"and small again")
        assert await receive(conn.far, 15) == b"and small again"
        await talks.end(conn)
        await j.news.until(lambda: not j.book.live)
        (record,) = j.closed()
        assert (record.sent, record.received) == (len(BULK) + 15, len(BULK))
        assert record.verdict is Verdict.ALLOWED


@pytest.mark.parametrize("before", [b"before", BULK[: 3 * MIB]])
@pytest.mark.parametrize("ends", [False, True])
async def test_what_follows_an_urgent_byte_is_neither_lost_nor_left_lying(before, ends):
    """Reads stop there as if the socket were empty, and splice for good; with the end behind it, as if that was it."""
    async with joints() as j:
        conn = await j.connect()
        j.relay.unregister(conn.near_entry.carrier._caller.fd)
        await send(conn.near, before)
        await conn.near.send(b"!", socket.MSG_OOB)
        await conn.near.send(b"behind")
        if ends:
            conn.near.shutdown(socket.SHUT_WR)
        side = conn.near_entry.carrier._caller
        j.relay.register(side.fd, partial(conn.near_entry.carrier._ready, side), READ | WRITE | EDGE)
        assert await receive(conn.far, len(before) + 6) == before + b"behind"
        if ends:
            assert await receive_all(conn.far) == b""
        await talks.end(conn)
        await j.news.until(lambda: not j.book.live)


async def test_a_reader_that_stalls_stops_its_writer_and_no_other():
    async with joints() as j:
        stalled, live = await j.connect(sndbuf=4096), await j.connect()
        with trio.move_on_after(0.2):
            await send(stalled.near, bytes(64 * MIB))
        assert stalled.near_entry.carrier.sent < 4 * MIB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, live.near, BULK)
            assert await receive(live.far, len(BULK)) == BULK
        reset(stalled.near)


@pytest.mark.parametrize("first", ["near", "far"])
async def test_half_close_first_then_bulk_the_other_way(first):
    async with joints() as j:
        await talks.half_close_then_bulk(await j.connect(), first, BULK)


@pytest.mark.parametrize("who", ["near", "far"])
@pytest.mark.parametrize("before", [b"", b"x" * 100, BULK])
async def test_a_reset_is_seen_as_a_reset(who, before):
    async with joints() as j:
        conn = await j.connect()
        one, other = (conn.near, conn.far) if who == "near" else (conn.far, conn.near)
        with trio.move_on_after(0.2):
            await send(one, before)
        reset(one)
        with pytest.raises(ConnectionResetError):
            await receive_all(other)


async def test_nobody_accepts():
    async with joints() as j:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            nobody = gone.getsockname()
        conn = j.call(to=nobody, entries=2)
        with pytest.raises(ConnectionResetError):
            await receive_all(conn.near)
        records = j.closed()
        assert len(records) == 2
        assert {r.verdict for r in records} == {Verdict.FAILED}
        assert all("nobody accepts" in r.reason for r in records)


async def test_two_entries_for_one_pair_open_and_end_together():
    async with joints() as j:
        conn = await j.connect(entries=2)
        await send(conn.near, b"hello")
        assert await receive(conn.far, 5) == b"hello"
        next(iter(j.book.live.values())).carrier.abort("policy changed")
        for end in (conn.near, conn.far):
            with pytest.raises(ConnectionResetError):
                await receive_all(end)
        assert [(r.reason, r.verdict, r.sent) for r in j.closed()] == [("policy changed", Verdict.REFUSED, 5)] * 2


async def test_the_caller_hangs_up_while_connecting():
    async with joints() as j:
        conn = j.call()
        reset(conn.near)
        await j.news.until(lambda: not j.book.live)
        conn = j.call()
        conn.near.shutdown(socket.SHUT_WR)
        far = await j.accept(conn)
        assert await receive_all(far) == b""
        far.close()
        assert await receive_all(conn.near) == b""


async def test_bulk_has_one_turn_more_in_a_round_however_often_it_is_ready(monkeypatch):
    monkeypatch.setattr(agent.relay.pair, "_TURN", 1)
    monkeypatch.setattr(agent.relay.pair, "_SPLICES", 1)
    monkeypatch.setattr(agent.relay.pipes, "CAPACITY", 4096)
    async with joints() as j:
        conn = await j.connect()
        await soon(lambda: conn.near_entry.state == "open")
        pair = conn.near_entry.carrier
        turns = []
        move = Pair._move
        monkeypatch.setattr(Pair, "_move", lambda pair, side: turns.append(side) or move(pair, side))
        conn.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**21)
        await send(conn.near, bytes(2**18))
        for _ in range(3):  # and nothing else runs meanwhile
            pair._ready(pair._caller, READABLE)
        turns.clear()
        j.relay._round()
        assert turns.count(pair._caller) <= 2
        assert len(await receive(conn.far, 2**18)) == 2**18


def test_pipes_are_few_and_clean():
    before = descriptors()
    pipes = Pipes()
    taken = [pipes.take() for _ in range(20)]
    taken[0].held = 1  # as if bytes were left in it
    for pipe in taken:
        pipes.give(pipe)
    assert len(pipes._spare) == 16
    assert taken[0] not in pipes._spare
    for pipe in pipes._spare:
        pipe.close()
    assert descriptors() == before


def test_pipes_take_a_share_of_the_descriptors_and_no_more():
    before, pipes = descriptors(), Pipes()
    pipes._most = 2
    taken = [pipes.take(), pipes.take()]
    assert pipes.take() is None
    taken[0].held = 1
    pipes.give(taken[0])  # which closes it
    again = pipes.take()
    assert again is not None
    assert pipes.take() is None
    again.close()
    taken[1].close()
    assert descriptors() == before


def test_no_pipe_without_descriptors():
    before, pipes = descriptors(), Pipes()
    with no_descriptors_left():
        assert pipes.take() is None
    pipe = pipes.take()
    assert pipe is not None
    pipe.close()
    assert descriptors() == before


async def test_without_descriptors_for_a_pipe_bulk_goes_on_by_copying():
    async with joints() as j:
        j.relay.pipes.take = lambda: None
        conn = await j.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, conn.near, BULK)
            assert await receive(conn.far, len(BULK)) == BULK
        await soon(lambda: conn.near_entry.carrier.sent == len(BULK))
