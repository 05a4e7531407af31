"""What every joint of two applications must carry, whether a tunnel lies between them or not."""

import socket

import trio

from tests.agent.relay.rig import Conn, receive, receive_all, send


async def both_ways_at_once(conn: Conn, bulk: bytes) -> None:
    """`bulk` there, and reversed on its way back."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, conn.near, bulk)
        nursery.start_soon(send, conn.far, bulk[::-1])

        async def check() -> None:
            assert await receive(conn.near, len(bulk)) == bulk[::-1]

        nursery.start_soon(check)
        assert await receive(conn.far, len(bulk)) == bulk


async def half_close_then_bulk(conn: Conn, first: str, bulk: bytes) -> None:
    """The `first` to end ("near" or "far") still hears all that the other one says."""
    one, other = (conn.near, conn.far) if first == "near" else (conn.far, conn.near)
    await send(one, b"that was all")
    one.shutdown(socket.SHUT_WR)
    assert await receive_all(other) == b"that was all"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send, other, bulk)
        assert await receive(one, len(bulk)) == bulk
    other.shutdown(socket.SHUT_WR)
    assert await receive_all(one) == b""


async def end(conn: Conn) -> None:
    """Both applications end, the caller first."""
    for one, other in ((conn.near, conn.far), (conn.far, conn.near)):
        one.shutdown(socket.SHUT_WR)
        assert await receive_all(other) == b""
