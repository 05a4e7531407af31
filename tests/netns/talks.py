"""Conversations that any way between two programs must carry, whoever has made the nodes at its ends."""

import socket
import struct
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest
import trio

from agent.lab.place import Place
from tests.netns import traffic

Way = Callable[[traffic.Handler], AbstractAsyncContextManager[trio.SocketStream]]
"""One connection for the time of the block, with the handler at its far end."""


async def each_way(way: Way, size: int) -> None:
    """So many bytes there, then so many back; both ends say what they got."""
    async with way(traffic.pour(size)) as stream:
        sent = await traffic.send_pattern(stream, size)
        await stream.send_eof()
        seen = await traffic.read_exactly(stream, 40)
        received = await traffic.drain(stream)
    assert seen == sent + size.to_bytes(8)
    assert received == (sent, size)


async def both_ways_at_once(way: Way, size: int) -> None:
    """So many bytes each way."""
    there: list[tuple[bytes, int]] = []

    async def send(stream: trio.SocketStream) -> None:
        await traffic.send_pattern(stream, size)
        await stream.send_eof()

    async def both(stream: trio.SocketStream) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(traffic.send_pattern, stream, size)
            there.append(await traffic.drain(stream))
        await stream.send_eof()

    async with way(both) as stream, trio.open_nursery() as nursery:
        nursery.start_soon(send, stream)
        here = await traffic.drain(stream)
    assert here == there[0]
    assert here[1] == size


async def reset_by_the_caller(
    caller: Place, to: tuple[str, int], server: Place, at: tuple[str, int]
) -> BaseException | bytes | None:
    """How it ends for the server, which listens `at` its place: what it read to a clean end, or what was raised."""
    ends: list[BaseException | bytes | None] = []
    done = trio.Event()

    async def listen(stream: trio.SocketStream) -> None:
        try:
            await stream.send_all(b"hello")
            ends.append(await traffic.read_all(stream))
        except trio.BrokenResourceError as error:
            ends.append(error.__cause__)
        done.set()

    with trio.fail_after(10):
        async with traffic.serving(server, *at, listen):
            stream = await traffic.dial(caller, *to)
            assert await traffic.read_exactly(stream, 5) == b"hello"
            _reset(stream)
            await done.wait()
    return ends[0]


async def reset_by_the_server(way: Way) -> None:
    """It arrives as a reset."""

    async def reset(stream: trio.SocketStream) -> None:
        await traffic.read_exactly(stream, 5)
        _reset(stream)

    async with way(reset) as stream:
        await stream.send_all(b"hello")
        with pytest.raises(trio.BrokenResourceError) as caught:
            await traffic.read_all(stream)
    assert isinstance(caught.value.__cause__, ConnectionResetError)


def _reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()
