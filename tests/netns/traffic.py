"""Clients and servers inside this process, on sockets that belong to a place of the lab."""

import hashlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from agent.lab.place import Place

Handler = Callable[[trio.SocketStream], Awaitable[None]]

ENDED = (OSError, trio.BrokenResourceError)
"""How the operating system tells a program that a connection was refused or reset, depending on what it just did."""

BLOCK = bytes(range(256)) * 256


@dataclass
class Served:
    """What a server has seen: the addresses of its clients, in order of arrival."""

    peers: list[str] = field(default_factory=list)


async def dial(place: Place, address: str, port: int, seconds: float = 5) -> trio.SocketStream:
    """Connect from a place; OSError as a program would get it, TimeoutError when nothing answers."""
    sock = trio.socket.from_stdlib_socket(place.socket(_family(address)))
    try:
        with trio.fail_after(seconds):
            await sock.connect((address, port))
    except BaseException as error:
        sock.close()
        if isinstance(error, trio.TooSlowError):
            raise TimeoutError(f"no answer from {address} port {port} in {seconds} s") from error
        raise
    return trio.SocketStream(sock)


@asynccontextmanager
async def serving(place: Place, address: str, port: int, handler: Handler) -> AsyncIterator[Served]:
    """Serve there for the time of the block; a client that breaks off is no error."""
    sock = trio.socket.from_stdlib_socket(place.socket(_family(address)))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if _family(address) == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    await sock.bind((address, port))
    sock.listen(1024)
    served = Served()

    async def handle(stream: trio.SocketStream) -> None:
        try:
            served.peers.append(stream.socket.getpeername()[0])
            await handler(stream)
        except ENDED:
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, handle, [trio.SocketListener(sock)])
        try:
            yield served
        finally:
            nursery.cancel_scope.cancel()


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, and end when it ends."""
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


def greet(word: bytes) -> Handler:
    """Speak first, then echo."""

    async def handler(stream: trio.SocketStream) -> None:
        await stream.send_all(word)
        await echo(stream)

    return handler


async def hold(stream: trio.SocketStream) -> None:
    """Read nothing, send nothing, stay."""
    await trio.sleep_forever()


def pour(total: int) -> Handler:
    """Send `total` bytes, then end; what comes in is hashed first and its digest sent before them."""

    async def handler(stream: trio.SocketStream) -> None:
        digest, size = await drain(stream)
        await stream.send_all(digest + size.to_bytes(8))
        await send_pattern(stream, total)
        await stream.send_eof()

    return handler


async def send_pattern(stream: trio.SocketStream, total: int) -> bytes:
    """Send `total` bytes that repeat only after 64 KiB; their SHA-256."""
    digest = hashlib.sha256()
    left = total
    while left:
        piece = BLOCK[:left]
        digest.update(piece)
        await stream.send_all(piece)
        left -= len(piece)
    return digest.digest()


async def drain(stream: trio.SocketStream) -> tuple[bytes, int]:
    """Read to the end; SHA-256 and number of bytes."""
    digest, size = hashlib.sha256(), 0
    while data := await stream.receive_some(2**18):
        digest.update(data)
        size += len(data)
    return digest.digest(), size


async def read_all(stream: trio.SocketStream) -> bytes:
    """All bytes to the end."""
    return b"".join([data async for data in stream])


async def read_exactly(stream: trio.SocketStream, size: int) -> bytes:
    """The next `size` bytes; AssertionError when the stream ends before."""
    data = b""
    while len(data) < size:
        more = await stream.receive_some(size - len(data))
        assert more, f"the stream ended after {data!r}"
        data += more
    return data


async def ask(place: Place, address: str, port: int, text: bytes = b"ping", seconds: float = 5) -> bytes:
    """One exchange with an echo server: say `text`, end, and read all that comes back."""
    with trio.fail_after(seconds):
        async with await dial(place, address, port) as stream:
            await stream.send_all(text)
            await stream.send_eof()
            return await read_all(stream)


async def refused(place: Place, address: str, port: int, seconds: float = 5) -> bool:
    """Whether an exchange gets no byte through: refused, reset or ended at once. A timeout is no refusal."""
    try:
        return await ask(place, address, port, seconds=seconds) == b""
    except TimeoutError:
        raise
    except ENDED:
        return True


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
