"""What happens when somebody does not read, or breaks off: stalls, full sockets, lost tunnels."""

import resource
import socket

import pytest
import trio
from OpenSSL import SSL

from agent.connections import Verdict
from agent.relay.loop import EDGE, READ, WRITE
from agent.tunnel import frames
from agent.tunnel.stream import STREAM_WINDOW
from ca.tls import Memory
from tests.agent.relay.rig import START, machines, receive, receive_all, reset, rig, send, soon

MIB = 2**20


def held(conn) -> int:
    """Bytes that a leg keeps for an application that does not read."""
    return sum(len(piece) for piece in conn.far_entry.carrier._pending)


async def flood(sock: trio.socket.SocketType) -> None:
    """Write until cancelled."""
    while True:
        await sock.send(bytes(65536))


async def test_a_hundred_stalled_streams_beside_a_live_one():
    """The live one moves many times what the stalled ones hold, and they hold no more than their windows."""
    async with rig() as r:
        await r.source.news.until(lambda: r.out.core.settled)
        stalled = [r.call(sndbuf=4096) for _ in range(100)]
        for conn in stalled:
            await r.accept(conn)
        live = await r.connect()
        async with trio.open_nursery() as nursery:
            for conn in stalled:
                nursery.start_soon(flood, conn.near)
            await soon(lambda: all(c.far_entry.carrier._stream.recv_window == 0 for c in stalled))
            assert all(held(c) <= c.far_entry.carrier._stream.window for c in stalled)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            body = bytes(range(256)) * 4096

            async def talk() -> None:
                for _ in range(32):
                    await send(live.near, body)

            nursery.start_soon(talk)
            for _ in range(32):
                assert await receive(live.far, MIB) == body
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            assert after - before < 32 * 1024  # KiB
            assert sum(held(c) for c in stalled) <= 100 * STREAM_WINDOW + START - r.target.shared.budget.left
            nursery.cancel_scope.cancel()
        for conn in stalled:
            reset(conn.near)


async def test_small_pieces_for_an_application_that_does_not_read_cost_what_they_hold():
    """A peer may send its window a byte at a time."""
    async with rig() as r:
        conn = await r.connect(sndbuf=4096)
        stream = r.out.core.streams[1]
        body = bytes(i % 251 for i in range(100_000))
        for at in range(0, len(body), 1000):
            for i in range(at, at + 1000):
                r.out.core.outgoing += frames.header(frames.DATA, 0, 1, 1) + body[i : i + 1]
                r.out.core.sent_data(stream, 1)
            r.out.touch()
            await trio.lowlevel.checkpoint()
        await soon(lambda: r.into.core.streams[1].recv_window == STREAM_WINDOW - len(body) or held(conn) > 80_000)
        assert len(conn.far_entry.carrier._pending) < 200
        assert await receive(conn.far, len(body)) == body


async def test_a_blocked_tunnel_goes_on_where_it_stopped():
    async with rig(sndbuf=4096, rcvbuf=4096) as r:
        conns = [await r.connect() for _ in range(5)]
        body = bytes(i % 251 for i in range(MIB))
        r.target.relay.unregister(r.into._fd)  # the other node stands still
        async with trio.open_nursery() as nursery:
            for conn in conns:
                nursery.start_soon(send, conn.near, body)
            await soon(lambda: bool(r.out._unsent))
            for _ in range(200):
                await trio.lowlevel.checkpoint()
            assert sum(map(len, r.out._unsent)) < MIB
            assert len(r.out._waiting) <= len(conns)
            r.target.relay.register(r.into._fd, r.into._ready, READ | WRITE | EDGE)
            for conn in conns:
                assert await receive(conn.far, MIB) == body


async def test_nobody_is_kept_waiting_twice():
    """With the connection's window closed, every arrival at every application asks again."""
    async with rig() as r:
        await r.source.news.until(lambda: r.out.core.settled)
        conns = [await r.connect() for _ in range(5)]
        r.out.core.send_window = 0
        for _ in range(20):
            for conn in conns:
                await send(conn.near, b"x")
            for _ in range(5):
                await trio.lowlevel.checkpoint()
        await soon(lambda: len(r.out._waiting) >= 5)
        r.out.core.receive(memoryview(frames.window_update(0, 1)))
        r.out.core.send_window = 0
        r.out.touch()
        for _ in range(20):
            await trio.lowlevel.checkpoint()
        assert len(r.out._waiting) == 5
        r.into.core.outgoing += frames.window_update(0, 10_000)
        r.into.touch()
        for conn in conns:
            assert await receive(conn.far, 20) == b"x" * 20


async def test_a_closed_connection_window_is_shared_out_in_turn():
    """A stock peer with a small window for the whole connection: no stream takes all of it again and again."""
    async with rig() as r:
        await r.source.news.until(lambda: r.out.core.settled)
        conns = [await r.connect() for _ in range(4)]
        async with trio.open_nursery() as nursery:
            r.out.core.send_window = 0
            for conn in conns:
                nursery.start_soon(flood, conn.near)
            await soon(lambda: len(r.out._waiting) == 4)
            for granted in range(1, 41):
                r.into.core.outgoing += frames.window_update(0, 16384)
                r.into.touch()
                await soon(lambda total=granted * 16384: sum(c.near_entry.carrier.sent for c in conns) == total)
            nursery.cancel_scope.cancel()
        shares = [c.near_entry.carrier.sent for c in conns]
        assert max(shares) - min(shares) <= 16384, shares
        for conn in conns:
            reset(conn.near)


async def test_who_leaves_waits_no_more():
    """A peer that gives no credit for long would have everybody who gave up meanwhile kept here."""
    async with rig() as r:
        await r.source.news.until(lambda: r.out.core.settled)
        conns = [await r.connect() for _ in range(5)]
        r.out.core.send_window = 0
        for conn in conns:
            await send(conn.near, b"x")
        await soon(lambda: len(r.out._waiting) == 5)
        for conn in conns:
            reset(conn.near)
        await r.idle()
        assert not r.out._waiting


async def test_credit_for_the_connection_concerns_only_those_who_wait_for_it():
    """A peer may give it a byte at a time, and each would make work for every stream."""
    async with rig() as r:
        await r.source.news.until(lambda: r.out.core.settled)
        conns = [await r.connect() for _ in range(3)]
        r.out.core.send_window = 0
        await send(conns[1].near, b"xy")
        await soon(lambda: len(r.out._waiting) == 1)
        pumped = []
        for stream, conn in zip(r.out.core.streams.values(), conns, strict=True):
            stream.owner = Watched(conn.near_entry.carrier, pumped)
        r.into.core.outgoing += frames.window_update(0, 2)
        r.into.touch()
        assert await receive(conns[1].far, 2) == b"xy"
        assert not pumped  # who waits is known by itself
        for stream, conn in zip(r.out.core.streams.values(), conns, strict=True):
            stream.owner = conn.near_entry.carrier
        r.into.core.outgoing += frames.window_update(0, 10_000)
        r.into.touch()


class Watched:
    """Stands before a leg, and notes when it is pumped."""

    def __init__(self, leg, pumped: list) -> None:
        self._leg, self._pumped = leg, pumped

    def pump(self) -> None:
        self._pumped.append(self._leg)
        self._leg.pump()

    def __getattr__(self, name: str):
        return getattr(self._leg, name)


class Ends:
    """The owner of a stream in whose turn the tunnel ends."""

    def __init__(self, link) -> None:
        self._link = link

    def pump(self) -> None:
        self._link.close("its socket failed")

    def broken(self, _reason: str, *, unseen: bool = False) -> None: ...


async def test_nobody_is_asked_for_on_a_tunnel_that_has_just_ended():
    """Its request stands in the same read, behind what ended the tunnel: it would be carried by nothing, for ever."""
    async with rig() as r:
        conn = await r.connect()
        stream = r.into.core.streams[1]
        leg, stream.owner, stream.send_window = stream.owner, Ends(r.into), 0
        r.out.core.outgoing += frames.window_update(1, 10)
        asked = len(r.target.asked_for)
        late = r.call()
        await soon(lambda: r.into.closed)
        leg.broken("its tunnel has ended")
        assert len(r.target.asked_for) == asked
        for sock in (conn.near, late.near):
            with pytest.raises(ConnectionResetError):
                await receive_all(sock)


async def test_a_peer_that_asks_much_and_reads_nothing_is_given_up():
    """Answers to its pings would otherwise pile up here for as long as it likes."""
    async with rig(sndbuf=4096, rcvbuf=4096) as r:
        r.target.relay.unregister(r.into._fd)
        await soon(lambda: r.out.core.settled)
        with trio.fail_after(20):
            while not r.out.closed:
                r.out.core.tick()
                for _ in range(9000):
                    r.out.core.outgoing += frames.header(frames.PING, frames.ACK, 0, 8) + bytes(8)
                r.out.touch()
                await trio.lowlevel.checkpoint()
        assert "does not read" in r.out.reason
        r.into.close("")


async def test_a_heap_of_control_frames_leaves_room_for_data():
    """More of them than a batch holds, in one round: an application's socket was once read with no room, as its end."""
    async with rig() as r:
        conn = await r.connect()
        await soon(lambda: not r.out._due)
        r.out.core.outgoing += (frames.header(frames.PING, frames.ACK, 0, 8) + bytes(8)) * 9900
        r.out.core.outgoing += frames.header(0xFA, 0, 0, 2**14) + bytes(2**14)
        slack = 2**18 + 2**13 - len(r.out.core.outgoing)
        while slack > 9:
            n = min(2**14, slack - 9)
            r.out.core.outgoing += frames.header(0xFA, 0, 0, n) + bytes(n)
            slack -= n + 9
        await send(conn.near, b"not the end")
        conn.near_entry.carrier._readable = True
        conn.near_entry.carrier.pump()
        assert await receive(conn.far, 11) == b"not the end"
        assert not r.out.core.streams[1].ended_here


# ---- lost tunnels


@pytest.mark.parametrize("how", ["reset", "eof", "notified"])
async def test_a_lost_tunnel_resets_what_it_carried(how):
    async with rig() as r:
        conns = [await r.connect() for _ in range(3)]
        await send(conns[0].near, b"x" * 100)
        assert await receive(conns[0].far, 100) == b"x" * 100
        if how == "reset":
            reset(r.wires[0])
            r.source.relay._handlers.pop(r.out._fd)
            r.out._fd = -1
        elif how == "eof":
            r.wires[0].shutdown(socket.SHUT_WR)
        else:
            r.out.close("")
        for conn in conns:
            with pytest.raises(ConnectionResetError):
                await receive_all(conn.far)
        await r.target.news.until(lambda: not r.target.book.live)
        assert {c.verdict for c in r.target.closed()} == {Verdict.FAILED}
        r.out.close("")


async def test_windows_that_grew_are_given_back_when_the_tunnel_is_lost():
    async with rig() as r:
        conn = await r.connect()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, conn.near, bytes(16 * MIB))
            await receive(conn.far, 16 * MIB)
        assert r.target.shared.budget.left < START
        r.out.close("")
        await soon(lambda: r.into.closed)
        assert r.target.shared.budget.left == START


GARBAGE = [b"garbage", b"\x17\x03\x03\x00\x05hello", b"\x15\x03\x03\x00\x02\x02\x28", b"GET / HTTP/1.1\r\n\r\n" * 100]


@pytest.mark.parametrize("noise", GARBAGE)
async def test_garbage_on_the_wire_ends_this_tunnel_and_no_other(noise):
    async with rig() as other:
        neighbour = await other.connect()
        async with rig() as r:
            conn = await r.connect()
            await send(conn.near, b"sound")
            assert await receive(conn.far, 5) == b"sound"
            r.wires[0].send(noise)
            with pytest.raises(ConnectionResetError):
                await receive_all(conn.far)
            assert r.into.closed
            assert "broke TLS" in r.into.reason
            await send(neighbour.near, b"still here")
            assert await receive(neighbour.far, 10) == b"still here"


async def test_records_before_garbage_still_count():
    async with rig() as r:
        conn = await r.connect()
        r.source.relay.unregister(r.out._fd)
        stream = r.out.core.streams[1]
        r.out._machine.write(frames.header(frames.DATA, 0, stream.id, 5) + b"sound")
        r.wires[0].send(r.out._machine.take() + b"garbage")
        assert await receive(conn.far, 5) == b"sound"
        with pytest.raises(ConnectionResetError):
            await receive_all(conn.far)
        r.source.relay.register(r.out._fd, r.out._ready, READ | WRITE | EDGE)


@pytest.mark.parametrize(
    "broken", [frames.header(frames.DATA, 0, 99, 0), frames.header(frames.PING, 0, 0, 7) + bytes(7)]
)
async def test_an_end_right_before_a_broken_rule_still_ends_its_connection(broken):
    """The core has forgotten the stream by then: nobody else would tell the leg."""
    async with rig() as r:
        conn = await r.connect()
        conn.far.shutdown(socket.SHUT_WR)
        assert await receive_all(conn.near) == b""
        r.out.core.outgoing += frames.header(frames.DATA, frames.END_STREAM, 1, 4) + b"last" + broken
        r.out.touch()
        assert await receive_all(conn.far) == b"last"
        await soon(lambda: r.into.closed)
        assert "broke HTTP/2" in r.into.reason
        assert not r.target.book.live


async def test_an_error_of_one_machine_is_not_taken_for_anothers():
    """OpenSSL's errors stand in a queue of the thread, where whoever asks next finds them."""
    memory = Memory(2**15)
    dead, _ = machines()
    dead.feed(b"garbage that is long enough to be a record")
    sound, _ = machines()
    assert SSL._lib.SSL_read(dead._connection._ssl, memory._pointer, 10) < 0
    assert sound.open(memory) == (0, False)
