"""How supervisor and worker exchange messages and file descriptors: one AF_UNIX stream socket.

A frame is four bytes of body length and two of descriptor count (big-endian), then the body: one of `agent.messages` as
msgpack. The descriptors of a frame travel with its first byte. The kernel never hands them over later than that byte,
and never moves those of two sends at once, so a plain queue keeps them in step with the frames however the bytes are
cut.

A process that has as many descriptors open as it may would lose those of a frame. So the worker's end keeps RESERVE of
them, gives them up for each look at the socket, and takes them back.

A frame of a kind this side does not know is skipped and its descriptors are closed: during an upgrade the two processes
may come from different versions.
"""

import array
import fcntl
import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import msgspec
import trio

from agent.messages import FROM_WORKER, TO_WORKER

_Out = TypeVar("_Out")
_In = TypeVar("_In")

MAX_BODY = 32 * 2**20
"""Bytes of one body: above any frame of the centre (contract.MAX_BODY), which may travel on in one View."""
MAX_DESCRIPTORS = 250
"""Descriptors of one frame; the kernel's own limit for one send is 253 (SCM_MAX_FD)."""

RESERVE = 128
"""Descriptors that a worker keeps for what comes: the sockets of one order (worker/stock.py) twice, so that it can take
one more when listeners have come meanwhile."""

_HEADER = struct.Struct("!IH")
_CHUNK = 256 * 1024
_ANCILLARY = socket.CMSG_SPACE(253 * 4)


class ChannelClosedError(Exception):
    """The other process is gone; what it had sent half is lost."""


class ChannelBrokenError(Exception):
    """The other process said what cannot be understood, or a send of ours was cut short: the channel is of no more use.
    The message says which."""


class _Kind(msgspec.Struct):
    m: str


_peek = msgspec.msgpack.Decoder(_Kind)


class Channel(Generic[_Out, _In]):
    """One end. Takes over `sock`; `close` closes it, together with descriptors that arrived but were not received.

    One task receives; any number may send, whole frames at a time. `reserve` descriptors are kept for what is received.
    """

    def __init__(self, sock: socket.socket, incoming: Any, reserve: int = 0) -> None:
        sock.setblocking(False)
        self._plain = sock
        self._socket = trio.socket.from_stdlib_socket(sock)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(incoming)
        self._tags = frozenset(_tag(t) for t in incoming.__args__)
        self._sending = trio.Lock()
        self._broken = False
        self._buffer = bytearray()
        self._descriptors: deque[int] = deque()
        self._wanted, self._reserve = reserve, list[int]()
        self.replenish()

    async def send(self, message: _Out, fds: Sequence[int] = ()) -> None:
        """Send one message and duplicates of `fds`, in order; the caller keeps and closes its own.

        Raises ChannelClosedError when the other side is gone. A send cancelled half way leaves half a frame behind;
        every later one raises ChannelBrokenError.
        """
        if len(fds) > MAX_DESCRIPTORS:
            raise ValueError(f"{len(fds)} descriptors in one message; {MAX_DESCRIPTORS} is the most")
        body = self._encoder.encode(message)
        if len(body) > MAX_BODY:
            raise ValueError(f"a message of {len(body)} bytes; {MAX_BODY} is the most")
        async with self._sending:
            if self._broken:
                raise ChannelBrokenError("an earlier send was cut short")
            await self._send(_HEADER.pack(len(body), len(fds)) + body, fds)

    async def _send(self, frame: bytes, fds: Sequence[int]) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds).tobytes())] if fds else []
        sent = 0
        try:
            sent = await self._socket.sendmsg([frame], ancillary)
            with memoryview(frame) as view:
                while sent < len(frame):
                    sent += await self._socket.send(view[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            self._broken = True
            raise ChannelClosedError("the other process is gone") from error
        except BaseException:
            self._broken = sent > 0
            raise

    async def receive(self) -> tuple[_In, list[int]]:
        """The next message and its descriptors, which now belong to the caller (closed on exec, blocking as they were).

        Raises ChannelClosedError at the end, ChannelBrokenError for what is no frame. Cancelling loses nothing.
        """
        while True:
            frame = self._next_frame()
            if frame is None:
                await self._fill()
                continue
            body, fds = frame
            try:
                message: _In = self._decoder.decode(body)
            except msgspec.DecodeError as error:
                _close_all(fds)
                if self._known(body):
                    raise ChannelBrokenError(f"a message cannot be read: {error}") from error
                continue
            return message, fds

    def _next_frame(self) -> tuple[bytes, list[int]] | None:
        if len(self._buffer) < _HEADER.size:
            return None
        length, count = _HEADER.unpack_from(self._buffer)
        if length > MAX_BODY or count > MAX_DESCRIPTORS:
            raise ChannelBrokenError(f"a frame of {length} bytes and {count} descriptors is beyond the limits")
        end = _HEADER.size + length
        if len(self._buffer) < end:
            return None
        if len(self._descriptors) < count:
            raise ChannelBrokenError(f"a frame names {count} descriptors, {len(self._descriptors)} came")
        body = bytes(self._buffer[_HEADER.size : end])
        del self._buffer[:end]
        return body, [self._descriptors.popleft() for _ in range(count)]

    def replenish(self) -> bool:
        """Take what is missing of the reserve; -> whether it is whole. If not, close what just came and can be missed,
        and call again: the descriptors of the next message may be lost otherwise, and the channel with them."""
        try:
            while len(self._reserve) < self._wanted:
                self._reserve.append(fcntl.fcntl(self._plain, fcntl.F_DUPFD_CLOEXEC, 0))
        except OSError:
            return False
        return True

    def _give_up(self) -> None:
        _close_all(self._reserve)
        self._reserve.clear()

    async def _fill(self) -> None:
        await trio.lowlevel.wait_readable(self._plain)
        self._give_up()
        try:
            data, ancillary, flags, _ = self._plain.recvmsg(_CHUNK, _ANCILLARY, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except ConnectionResetError as error:
            raise ChannelClosedError("the other process is gone") from error
        finally:
            self.replenish()
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds = array.array("i")
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
                self._descriptors.extend(fds)
        if flags & socket.MSG_CTRUNC:
            raise ChannelBrokenError(
                "descriptors were lost on the way: is the limit of open files (LimitNOFILE) reached?"
            )
        if len(self._descriptors) > 2 * MAX_DESCRIPTORS:
            raise ChannelBrokenError("descriptors came that no frame names")
        if not data:
            raise ChannelClosedError("the other process is gone")
        self._buffer += data

    def _known(self, body: bytes) -> bool:
        try:
            return _peek.decode(body).m in self._tags
        except msgspec.DecodeError:
            return True

    def close(self) -> None:
        """Close the socket; a task that waits in `receive` or `send` gets trio.ClosedResourceError."""
        self._broken = True
        self._wanted = 0
        self._give_up()
        self._socket.close()
        _close_all(self._descriptors)
        self._descriptors.clear()


def supervisor_end(sock: socket.socket) -> "Channel[TO_WORKER, FROM_WORKER]":
    """The supervisor's end of a socketpair."""
    return Channel(sock, FROM_WORKER)


def worker_end(sock: socket.socket) -> "Channel[FROM_WORKER, TO_WORKER]":
    """The worker's end."""
    return Channel(sock, TO_WORKER, RESERVE)


def _tag(message: Any) -> str:
    return str(message.__struct_config__.tag)


def _close_all(fds: Sequence[int] | deque[int]) -> None:
    for fd in fds:
        os.close(fd)
