"""Tunnels that go away in good order."""

import fcntl
import socket
import termios
from array import array

import pytest
import trio

from agent.connections import Verdict
from agent.relay.loop import EDGE, READ, WRITE
from agent.tunnel import frames
from agent.tunnel import link as link_module
from ca.tls import Memory
from tests.agent.relay.rig import receive, receive_all, rig, send, soon

MIB = 2**20


@pytest.mark.parametrize("who", ["out", "into"])
async def test_without_streams_a_tunnel_drains_at_once(who):
    async with rig() as r:
        await soon(lambda: r.out.core.settled and r.into.core.settled)
        (r.out if who == "out" else r.into).drain()
        await soon(lambda: r.out.closed and r.into.closed)
        assert r.source.left[0] is r.out
        assert not r.out.core.streams


@pytest.mark.parametrize("who", ["out", "into"])
async def test_open_streams_go_on_and_the_tunnel_ends_with_the_last(who):
    async with rig() as r:
        await soon(lambda: r.out.core.settled)
        conns = [await r.connect() for _ in range(2)]
        (r.out if who == "out" else r.into).drain()
        await soon(lambda: r.out.core.draining)
        assert r.out.core.full
        assert r.source.left == [r.out]
        for conn in conns:
            await send(conn.near, b"still")
            assert await receive(conn.far, 5) == b"still"
            conn.far.shutdown(socket.SHUT_WR)
            assert await receive_all(conn.near) == b""
            assert not r.out.closed
            conn.near.shutdown(socket.SHUT_WR)
            assert await receive_all(conn.far) == b""
        await soon(lambda: r.out.closed and r.into.closed)
        assert {c.verdict for c in r.source.closed() + r.target.closed()} == {Verdict.ALLOWED}


@pytest.mark.parametrize("who", ["out", "into"])
@pytest.mark.parametrize("buffers", [0, 5000])
async def test_the_last_bytes_of_the_last_stream_are_not_lost(who, buffers):
    """They are still on their way when the stream has ended for us, and the reader's credit comes against them."""
    async with rig(sndbuf=buffers, rcvbuf=buffers) as r:
        conn = await r.connect()
        one, other = (conn.near, conn.far) if who == "out" else (conn.far, conn.near)
        other.shutdown(socket.SHUT_WR)
        assert await receive_all(one) == b""
        link, peer = (r.out, r.into) if who == "out" else (r.into, r.out)
        link.drain()
        body = bytes(i % 251 for i in range(3 * MIB))
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                await send(one, body)
                one.close()

            nursery.start_soon(write)
            assert await receive_all(other) == body
        await soon(lambda: link.closed and peer.closed)


async def test_a_peer_that_reads_late_gets_the_last_bytes_too():
    async with rig(sndbuf=5000, rcvbuf=5000) as r:
        conn = await r.connect()
        conn.far.shutdown(socket.SHUT_WR)
        assert await receive_all(conn.near) == b""
        r.target.relay.unregister(r.into._fd)  # it looks away
        r.out.drain()
        for sock in r.wires:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
        assert conn.near._sock.send(b"z" * 16000) == 16000  # both at once, without a turn for the relay
        conn.near.close()
        await r.source.news.until(lambda: not r.source.book.live)
        assert r.out._unsent
        r.out.core.outgoing += frames.header(frames.PING, 0, 0, 8) + bytes(8)  # a tick may come meanwhile
        r.out.touch()
        assert not r.out.closed
        r.target.relay.register(r.into._fd, r.into._ready, READ | WRITE | EDGE)
        assert await receive_all(conn.far) == b"z" * 16000
        await soon(lambda: r.out.closed and r.into.closed)


async def test_a_stream_that_crosses_the_goaway_is_given_back_as_not_looked_at():
    async with rig() as r:
        await soon(lambda: r.out.core.settled)
        keeps = await r.connect()
        r.into.drain()
        conn = r.call()
        with pytest.raises(ConnectionResetError):
            await receive_all(conn.near)
        (record,) = r.source.closed()
        assert "did not look at it" in record.reason or "reset by the other side" in record.reason
        await send(keeps.near, b"still")
        assert await receive(keeps.far, 5) == b"still"


async def test_a_tunnel_whose_last_stream_was_not_looked_at_ends():
    async with rig() as r:
        await soon(lambda: r.out.core.settled)
        r.target.relay.unregister(r.into._fd)
        conn = r.call()
        r.into.core.drain()
        r.into.touch()
        with pytest.raises(ConnectionResetError):
            await receive_all(conn.near)
        r.target.relay.register(r.into._fd, r.into._ready, READ | WRITE | EDGE)
        await soon(lambda: r.out.closed and r.into.closed, 5)


async def test_an_end_behind_more_than_one_round_reads_is_seen(monkeypatch):
    """The kernel tells of it once, and the reading goes on in later rounds."""
    monkeypatch.setattr(link_module, "_READS", 1)
    monkeypatch.setattr(link_module, "BUFFER", 2**12)
    async with rig() as r:
        r.target.relay.received = Memory(2**12)
        conn = await r.connect()
        r.target.relay.unregister(r.into._fd)
        r.source.relay.unregister(r.out._fd)
        r.wires[0].setblocking(True)
        for _ in range(2):
            r.out._machine.write(frames.header(0xFA, 0, 0, 2**14) + bytes(2**14))
            r.wires[0].sendall(r.out._machine.take())
        r.wires[0].shutdown(socket.SHUT_WR)
        await soon(lambda: unread(r.wires[1]) > 2**15)
        r.target.relay.register(r.into._fd, r.into._ready, READ | WRITE | EDGE)
        await soon(lambda: r.into.closed, seconds=3)
        r.source.relay.register(r.out._fd, r.out._ready, READ | WRITE | EDGE)
        with pytest.raises(ConnectionResetError):
            await receive_all(conn.far)


def unread(sock: socket.socket) -> int:
    """Bytes that the kernel holds for a socket."""
    count = array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]
