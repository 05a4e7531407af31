"""A pair: two sockets joined without a tunnel, for connections that stay on this node or leave it in plaintext.

The same rules as a leg's: half-closes travel both ways for themselves, a reset stays a reset, what one side does not
take is kept (at most one BUFFER, or one pipe) and stops the reading on the other. The pair owns both sockets.

A flow that fills a whole BUFFER at once is bulk, and from then on goes through a kernel pipe: that costs a third of the
CPU, while for small messages reading and writing is cheaper than two splices.
"""

import os
import socket
from functools import partial

from agent.book import Book, Entry
from agent.connections import Verdict
from agent.relay.leg import abort
from agent.relay.loop import BROKEN, BUFFER, EDGE, GONE, HALF_CLOSED, READ, WRITE, Relay
from agent.relay.pipes import Pipe
from agent.relay.preface import begin

_TURN = BUFFER
"""Bytes one side may copy in one round."""
_SPLICES = 4  # the same for bulk, in pipes full


class _Side:
    """One socket of the pair, and what is on its way from here to the other side."""

    __slots__ = ("eof", "fd", "half_closed", "moved", "other", "pending", "pipe", "queued", "readable", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.fd = sock, sock.fileno()
        self.other = self
        self.readable = self.half_closed = self.eof = False
        self.queued = False  # to go on in this round or the next
        self.pending = memoryview(b"")
        self.pipe: Pipe | None = None
        self.moved = 0


class Pair:
    """`caller` is connected, `callee` is connecting; the entries (one or, within a node, one for each end) are closed
    with the pair."""

    __slots__ = ("_book", "_callee", "_caller", "_closed", "_connecting", "_entries", "_relay")

    def __init__(
        self,
        relay: Relay,
        caller: socket.socket,
        callee: socket.socket,
        book: Book,
        entries: list[Entry],
    ) -> None:
        self._relay, self._book, self._entries = relay, book, entries
        self._caller, self._callee = _Side(caller), _Side(callee)
        self._caller.other, self._callee.other = self._callee, self._caller
        self._connecting, self._closed = True, False
        for entry in entries:
            entry.carrier = self
        for side in (self._caller, self._callee):
            relay.register(side.fd, partial(self._ready, side), READ | WRITE | EDGE)

    @property
    def sent(self) -> int:
        return self._caller.moved

    @property
    def received(self) -> int:
        return self._callee.moved

    def _ready(self, side: _Side, mask: int) -> None:
        if self._closed:
            return
        if self._connecting and side is self._callee and mask & (WRITE | GONE):
            error = side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or begin(
                side.sock, self._entries[-1].preface
            )
            if error:
                where = self._entries[-1].destination.address
                self.abort(f"nobody accepts at {where}: {os.strerror(error)}", Verdict.FAILED)
                return
            self._connecting = False
            for entry in self._entries:
                self._book.open(entry)
            self._move(self._caller)
        elif mask & BROKEN:
            self.abort("one side reset the connection", Verdict.ALLOWED)
            return
        if mask & (READ | GONE):
            side.readable = True
            side.half_closed |= bool(mask & (HALF_CLOSED | GONE))
            self._move(side)
        other = side.other
        if mask & WRITE and not self._closed and (other.pending or (other.pipe and other.pipe.held)):
            self._move(other)

    def _move(self, side: _Side) -> None:
        """Move bytes from `side` to its other side."""
        if self._closed or self._connecting:
            return
        try:
            if side.pipe is None:
                self._copy(side)
            if side.pipe is not None:
                self._splice(side, side.pipe)
        except BlockingIOError:
            pass  # the socket that was asked will say when it is ready
        except OSError as error:
            self.abort(f"one side reset the connection ({error.strerror})", Verdict.ALLOWED)

    def _later(self, side: _Side) -> None:
        """Have its next turn once, however often it is ready meanwhile: else each edge would add a turn to every
        round."""
        if not side.queued:
            side.queued = True
            self._relay.again(partial(self._go_on, side))

    def _go_on(self, side: _Side) -> None:
        side.queued = False
        self._move(side)

    def _copy(self, side: _Side) -> None:
        """Move small messages; a flow that fills the buffer gets a pipe instead."""
        buffer, turn = self._relay.received.view, _TURN
        if side.pending and not self._send(side, side.pending):
            return
        while side.readable and not side.eof:
            n = self._read(side, buffer)
            if n == 0:
                return
            turn -= n
            if not self._send(side, buffer[:n]):
                return
            if turn <= 0:
                side.pipe = self._relay.pipes.take()
                if side.pipe is None:
                    self._later(side)
                return

    def _read(self, side: _Side, buffer: memoryview) -> int:
        try:
            n = side.sock.recv_into(buffer)
        except BlockingIOError:
            side.readable = False
            raise
        if n == 0:
            self._ended(side)
        elif n < len(buffer):
            side.readable = side.half_closed
        return n

    def _splice(self, side: _Side, pipe: Pipe) -> None:
        """Move bulk through the pipe, until the source runs dry."""
        for _ in range(_SPLICES):
            if not pipe.held:
                if not side.readable or side.eof:
                    return
                try:
                    ended = pipe.fill(side.fd) == 0
                except BlockingIOError:
                    ended = side.half_closed
                if not pipe.held:
                    # Dry: the flow may be a chatty one from here on, and the pipe may serve another. Or so it seems:
                    # splice stops for good at an urgent byte, and calls it the end once that has come. To copy tells.
                    side.readable, side.pipe = ended, None
                    self._relay.pipes.give(pipe)
                    if ended:
                        self._later(side)
                    return
            side.moved += pipe.drain(side.other.fd)
        self._later(side)

    def _ended(self, side: _Side) -> None:
        side.eof = True
        side.other.sock.shutdown(socket.SHUT_WR)
        self._finish()

    def _send(self, side: _Side, data: memoryview) -> bool:
        """Hand `data` to the other side; keep what it does not take, and say whether it took all."""
        n = 0
        try:
            n = side.other.sock.send(data)
        except BlockingIOError:
            pass
        side.moved += n
        if n == len(data):
            side.pending = memoryview(b"")
            return True
        side.pending = memoryview(bytes(data[n:]))
        return False

    def _finish(self) -> None:
        if self._caller.eof and self._callee.eof:
            self._leave()
            self._caller.sock.close()
            self._callee.sock.close()
            for entry in self._entries:
                self._book.close(entry)

    def abort(self, reason: str = "", verdict: Verdict = Verdict.REFUSED) -> None:
        """End the connection at once, both ways, with a reset."""
        if self._closed:
            return
        self._leave()
        abort(self._caller.sock)
        abort(self._callee.sock)
        for entry in self._entries:
            self._book.close(entry, verdict, reason)

    def _leave(self) -> None:
        self._closed = True
        for side in (self._caller, self._callee):
            if side.pipe is not None:
                self._relay.pipes.give(side.pipe)
                side.pipe = None
        self._relay.unregister(self._caller.fd)
        self._relay.unregister(self._callee.fd)
