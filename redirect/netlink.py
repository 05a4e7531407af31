"""A netlink socket: transactions and dumps, blocking. Answers come from our own kernel only.

pyroute2's sockets bring an asyncio loop and do not group changes into one transaction; this one does nothing else.
"""

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from redirect.encode import Message, batch
from redirect.frames import Frame, attributes, split

NETFILTER = 12
ROUTE = socket.NETLINK_ROUTE
SOL_NETLINK, EXT_ACK, CAP_ACK = 270, 11, 10
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
ERROR, DONE = 2, 3
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
INTERRUPTED = 0x10
"""NLM_F_DUMP_INTR: something changed during the dump, which may be torn."""
_EXTRA = 64 * 1024
_TRIES = 5
"""Of a dump that changes overtake."""


class CaptureError(Exception):
    """The kernel refused; the operator must act. `code` is its errno, the text has object, cause and next step."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Interrupted(Exception):
    """A dump was overtaken by a change: ask again."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What the kernel said about one message: errno and, where it gives one, a text."""

    number: int
    code: int
    text: str

    def __str__(self) -> str:
        return os.strerror(self.code) + (f" ({self.text})" if self.text else "")


class Netlink:
    """One socket, in the network namespace of the thread that makes it; for one caller at a time, who closes it."""

    def __init__(self, protocol: int, groups: int = 0) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._number = 0
        try:
            self._socket.bind((0, groups))
            for option in (EXT_ACK, CAP_ACK):
                # Old kernels have neither and merely say less.
                with contextlib.suppress(OSError):
                    self._socket.setsockopt(SOL_NETLINK, option, 1)
        except BaseException:
            self._socket.close()
            raise
        self.port: int = self._socket.getsockname()[0]
        """How the kernel names this socket as the author of a change."""

    def close(self) -> None:
        self._socket.close()

    def fileno(self) -> int:
        return self._socket.fileno()

    def transact(self, messages: list[Message]) -> None:
        """All messages or none. Raises Refused with what the kernel said about the first that it did not like."""
        first = self._next(len(messages) + 2)
        # The kernel works while it is being sent to, so that its answer is there when the call returns. One positive
        # answer is asked for, on the last message: silence would prove nothing.
        last = messages[-1]
        kind, flags = struct.unpack_from("=HH", last.data, 4)
        asked = Message(last.data[:4] + struct.pack("=HH", kind, flags | ACK) + last.data[8:], last.about)
        data = batch([*messages[:-1], asked], first)
        self._room(len(data))
        try:
            self._socket.send(data)
        except OSError as error:
            raise Refused(Refusal(first, error.errno or 0, "sending"), "the transaction") from error
        answers = list(self._answers(first, first + len(messages) + 1))
        if bad := [a for a in answers if a.code]:
            place = bad[0].number - first - 1
            raise Refused(bad[0], messages[place].about if 0 <= place < len(messages) else "the transaction")
        if not answers:
            raise Refused(Refusal(first, errno.EPROTO, "no answer"), "the transaction")

    def dump(self, kind: int, payload: bytes, about: str) -> list[bytes]:
        """The payloads of all that the kernel lists. `payload` starts with the protocol's own header."""
        number = self._next()
        self._socket.send(struct.pack("=IHHII", 16 + len(payload), kind, REQUEST | DUMP, number, 0) + payload)
        found: list[bytes] = []
        torn = False
        while True:
            for answer in split(self._receive()):
                if answer.number != number:
                    continue
                torn |= bool(answer.flags & INTERRUPTED)
                if answer.kind == DONE:
                    if torn:
                        raise Interrupted
                    return found
                if answer.kind == ERROR:
                    raise Refused(_refusal(answer), about)
                found.append(answer.payload)

    def whole(self, kind: int, payload: bytes, about: str) -> list[bytes]:
        """As `dump`, asked again where a change overtook it; Refused (EBUSY) when changes never end."""
        for _ in range(_TRIES):
            with contextlib.suppress(Interrupted):
                return self.dump(kind, payload, about)
        raise Refused(Refusal(0, errno.EBUSY, "it changes faster than it is listed: try again"), about)

    def ask(self, kind: int, payload: bytes, about: str, flags: int = 0) -> bytes | None:
        """One request by itself: the payload of its answer, or None where there was but an acknowledgement."""
        number = self._next()
        header = struct.pack("=IHHII", 16 + len(payload), kind, REQUEST | ACK | flags, number, 0)
        self._socket.send(header + payload)
        found = None
        while True:
            for answer in split(self._receive()):
                if answer.number != number:
                    continue
                if answer.kind != ERROR:
                    found = answer.payload
                    continue
                refusal = _refusal(answer)
                if refusal.code:
                    raise Refused(refusal, about)
                return found

    def drain(self) -> Iterator[Frame]:
        """What has arrived so far, without waiting. OSError ENOBUFS: more came than there was room for."""
        while True:
            try:
                data = self._socket.recv(_EXTRA, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            yield from split(data)

    def make_room_for_news(self, size: int) -> None:
        """As much receive buffer as we may have, up to `size` bytes."""
        self._grow(SO_RCVBUFFORCE, socket.SO_RCVBUF, size)

    def _room(self, size: int) -> None:
        # A transaction is one datagram and must fit whole; the kernel counts its own overhead on top.
        if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < size + _EXTRA:
            self._grow(SO_SNDBUFFORCE, socket.SO_SNDBUF, size + _EXTRA)

    def _grow(self, force: int, plain: int, size: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, force, size)
        except PermissionError:
            # In a user namespace of older kernels: take what the system's limit gives.
            self._socket.setsockopt(socket.SOL_SOCKET, plain, size)

    def _answers(self, first: int, last: int) -> Iterator[Refusal]:
        for answer in self.drain():
            if answer.kind == ERROR and first <= answer.number <= last:
                yield _refusal(answer)

    def _receive(self) -> bytes:
        return self._socket.recv(4 * _EXTRA)

    def _next(self, count: int = 1) -> int:
        if self._number + count > 0x7FFFFFFF:
            self._number = 0
        first = self._number + 1
        self._number += count
        return first


class Refused(Exception):
    """The kernel said no; `about` is the part it meant."""

    def __init__(self, refusal: Refusal, about: str) -> None:
        super().__init__(f"{about}: {refusal}")
        self.refusal = refusal
        self.about = about

    @classmethod
    def ours(cls, code: int, about: str) -> "Refused":
        """A failure found on our side."""
        return cls(Refusal(0, code, ""), about)

    @property
    def code(self) -> int:
        return self.refusal.code


def _refusal(frame: Frame) -> Refusal:
    """NLMSG_ERROR: errno negated, the header of the request, then attributes of which 1 is a text."""
    (code,) = struct.unpack_from("=i", frame.payload)
    text = dict(attributes(frame.payload[20:])).get(1, b"").rstrip(b"\0").decode(errors="replace")
    return Refusal(frame.number, -code, text)
