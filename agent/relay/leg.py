"""A leg: an application's socket, carried by one stream of a tunnel.

On the source's node the socket was captured; on the destination's it is being connected to the workload. Half-closes
travel both ways for themselves: EOF from the application becomes END_STREAM, END_STREAM becomes shutdown(SHUT_WR) after
the last byte. A reset stays a reset: RST_STREAM becomes a TCP reset and the other way round, never a clean end. The one
exception is NO_ERROR after END_STREAM, by which a peer that cannot half-close says that it is done: the application
gets every byte, then its end (docs/decisions/0013-wire-frozen.md).

The leg owns its socket, and closes it when both halves are done, or at once on a reset. What the application does not
take is kept in `_pending`, at most the stream's window, since the peer gets credit only for what was delivered.
"""

import os
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from agent.book import Book, Entry
from agent.connections import Verdict
from agent.relay.loop import BROKEN, EDGE, GONE, HALF_CLOSED, READ, READABLE, WRITE
from agent.relay.preface import begin
from agent.tunnel import frames
from agent.tunnel.owner import NOBODY
from agent.tunnel.stream import Stream

if TYPE_CHECKING:
    from agent.tunnel.link import Link

EARLY = 2**16
"""Bytes sent along with a CONNECT before it is answered, and kept until it is, so that another tunnel can have them."""

Retry = Callable[[socket.socket, bytes], None]
"""Try another tunnel for this connection and the bytes it has sent so far."""
_TURN_LEAST, _TURN_MOST = 2**14, 2**18
"""Bytes a leg may read in one round: it starts small, so that a bulk flow does not starve a small one, and doubles
while the application fills it."""
_PIECES = 64  # pieces per gathered write; well below IOV_MAX
_SMALL = 2**12  # bytes up to which pieces that are kept are joined
_DISCARDS = 2**7  # reads: more than a socket's queue holds
_RESET = struct.pack("ii", 1, 0)
RESET = frames.INTERNAL_ERROR
"""The code of our RST_STREAM for a connection that was reset. RFC 9113 has CONNECT_ERROR for it, which Envoy makes a
clean end of, as it does of PROTOCOL_ERROR; others do so of NO_ERROR and CANCEL."""


def abort(sock: socket.socket) -> None:
    """Close with a TCP reset."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    except OSError:
        pass
    sock.close()


def _discard(sock: socket.socket) -> None:
    """Take what arrived and nobody wants: to close before that would be a reset, and it would take along what the
    application has not got yet."""
    try:
        for _ in range(_DISCARDS):
            if not sock.recv(2**16, socket.MSG_TRUNC):
                return
    except OSError:
        pass


class Leg:
    """`sent` counts bytes from source to destination, `received` the other way, whichever end this is."""

    __slots__ = (
        "_awaits_room",
        "_book",
        "_closed",
        "_connecting",
        "_down",
        "_early",
        "_entry",
        "_eof",
        "_fd",
        "_gathered",
        "_half_closed",
        "_link",
        "_pending",
        "_queued",
        "_readable",
        "_resend",
        "_rest_eof",
        "_retry",
        "_sock",
        "_source",
        "_stream",
        "_turn",
        "_up",
    )

    def __init__(
        self,
        sock: socket.socket,
        link: "Link",
        stream: Stream,
        book: Book,
        entry: Entry,
        *,
        early: bytes = b"",
        retry: Retry | None = None,
    ) -> None:
        """On the source's node: `sock` is connected, and `stream` was just opened; `early` are bytes that an earlier
        tunnel lost, and `retry` is called when this one is lost before it answered. On the destination's: `sock` is
        connecting, and the stream is answered when it has."""
        self._sock, self._fd, self._link, self._stream, self._book, self._entry = (
            sock,
            sock.fileno(),
            link,
            stream,
            book,
            entry,
        )
        self._source = link.core.client
        self._connecting = not self._source
        self._gathered: list[memoryview | bytes] = []
        self._pending: list[memoryview] = []  # no deque: an empty one takes 600 bytes of every idle connection
        self._readable = False
        self._half_closed = False  # the kernel said that EOF, or an urgent byte, is in the socket's queue
        self._eof = False  # the application sends no more
        self._rest_eof = False  # the peer sends no more; shutdown follows the pending bytes
        self._closed = False
        self._queued = False  # to go on in this round or the next
        self._turn = _TURN_LEAST
        self._up, self._down = len(early), 0  # bytes from the application, to it
        self._early = bytearray(early)  # bytes sent before the answer
        self._resend = early
        self._retry = retry
        stream.owner = self
        entry.carrier = self
        link.idle_since = None
        # Whoever is connected can nearly always be written to: to be told so would be a wake-up for nothing.
        self._awaits_room = self._connecting
        link.relay.register(self._fd, self._ready, READ | WRITE | EDGE if self._connecting else READ | EDGE)

    @property
    def sent(self) -> int:
        return self._up if self._source else self._down

    @property
    def received(self) -> int:
        return self._down if self._source else self._up

    # ---- the application's socket

    def _ready(self, mask: int) -> None:
        if mask == READABLE and not self._connecting:  # what nearly every message comes as
            self._readable = True
            self.pump()
            return
        if self._connecting:
            if not mask & (WRITE | GONE) or not self._connected():
                return
        if mask & BROKEN:
            self._lost("the application reset the connection")
            return
        if mask & WRITE and self._pending:
            self._resume()
        if mask & (READ | GONE) and not self._closed:
            self._readable = True
            self._half_closed |= bool(mask & (HALF_CLOSED | GONE))
            self.pump()

    def _connected(self) -> bool:
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or begin(self._sock, self._entry.preface)
        if error:
            self.refuse(503, f"the workload at {self._entry.destination.address} does not accept: {os.strerror(error)}")
            return False
        self._connecting = False
        self._link.core.answer(self._stream, 200)
        self._link.touch()
        self._book.open(self._entry)
        if self._pending or self._rest_eof:
            self._resume()
        return True

    def pump(self) -> None:
        """Move what the application sent into the tunnel."""
        if self._closed or self._connecting or self._eof:
            return
        link, stream = self._link, self._stream
        turn = self._turn
        while self._resend:
            slot = link.slot(stream, len(self._resend))
            if slot is None:
                return
            slot[:] = self._resend[: len(slot)]
            self._resend = self._resend[len(slot) :]
            link.placed(stream, len(slot))
        while self._readable:
            if not stream.answered:
                if self._up >= EARLY:
                    return
                turn = min(turn, EARLY - self._up)
            slot = link.slot(stream, turn)
            if slot is None:
                return
            try:
                n = self._sock.recv_into(slot)
            except BlockingIOError:
                self._readable = False
                return
            except OSError as error:
                self._lost(f"the application reset the connection ({error.strerror})")
                return
            if n == 0:
                self._readable = False
                self._eof = True
                link.core.end(stream)
                link.touch()
                self._finish()
                return
            self._up += n
            if not stream.answered and self._source:
                self._early += slot[:n]
            link.placed(stream, n)
            if n < len(slot):
                # The socket is empty, unless its end is still in there, or an urgent byte.
                self._readable = self._half_closed
                if self._turn > _TURN_LEAST:
                    self._turn //= 2
            turn -= n
            if turn <= 0:
                self._turn = min(_TURN_MOST, self._turn * 2)
                if self._readable and not self._queued:  # else each edge would add a turn to every round
                    self._queued = True
                    link.relay.again(self._go_on)
                return

    def _go_on(self) -> None:
        self._queued = False
        self.pump()

    # ---- the stream (Owner)

    def receive(self, payload: memoryview | bytes) -> None:
        self._gathered.append(payload)

    def deliver(self) -> None:
        pieces = self._gathered
        if self._closed or not pieces:
            pieces.clear()
            return
        done = 0
        one = pieces[0] if len(pieces) == 1 else None
        if not self._pending and not self._connecting:
            try:
                # Before the end there is no need for a packet of its own: the end pushes what was held back.
                more = socket.MSG_MORE if self._rest_eof else 0
                done = self._sock.send(one, more) if one is not None else self._sock.sendmsg(pieces[:_PIECES], (), more)
            except BlockingIOError:
                pass
            except OSError as error:
                pieces.clear()
                self._lost(f"the application does not read any more ({error.strerror})")
                return
        if one is None or done < len(one):
            self._keep_rest(pieces, done)
        pieces.clear()
        if done:
            self._delivered(done)
        if self._pending and done and not self._connecting:
            self._resume()
        elif self._rest_eof and not self._pending:
            self._shut()

    def _keep_rest(self, pieces: list[memoryview | bytes], done: int) -> None:
        """Keep what of `pieces` the socket did not take: all but the first `done` bytes."""
        rest, left = [], done
        for piece in pieces:
            if left >= len(piece):
                left -= len(piece)
            else:
                rest.append(piece[left:])
                left = 0
        if rest:
            self._keep(b"".join(rest))

    def _keep(self, data: bytes) -> None:
        """Small pieces are joined: a peer may send its whole window in pieces of one byte."""
        if not self._awaits_room:
            self._awaits_room = True
            self._link.relay.change(self._fd, READ | WRITE | EDGE)
        if self._pending and len(self._pending[-1]) + len(data) <= _SMALL:
            data = b"".join((self._pending.pop(), data))
        self._pending.append(memoryview(data))

    def _delivered(self, count: int) -> None:
        self._down += count
        self._link.core.delivered(self._stream, count)
        if self._link.core.outgoing:
            self._link.touch()

    def _resume(self) -> None:
        done = 0
        while self._pending:
            try:
                n = self._sock.sendmsg(self._pending[:_PIECES])
            except BlockingIOError:
                break
            except OSError as error:
                self._lost(f"the application does not read any more ({error.strerror})")
                return
            done += n
            while n and n >= len(self._pending[0]):
                n -= len(self._pending.pop(0))
            if n:
                self._pending[0] = self._pending[0][n:]
                break
        if done:
            self._delivered(done)
        if self._rest_eof and not self._pending:
            self._shut()

    def ended(self) -> None:
        self._rest_eof = True
        if not self._gathered and not self._pending and not self._connecting:
            self._shut()

    def _shut(self) -> None:
        if not self._eof:  # else it is closed now, which says the same
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the application is gone; its reset or EOF tells
        self._finish()

    def _finish(self) -> None:
        if self._eof and self._rest_eof and not self._pending and not self._gathered and not self._closed:
            self._leave()
            if self._readable:
                _discard(self._sock)
            self._sock.close()
            self._book.close(self._entry)
            self._link.freed()

    def answered(self, status: int) -> None:
        if status // 100 == 2:  # any of them opens it (RFC 9110, section 9.3.6)
            self._early.clear()
            self._book.open(self._entry)
            self.pump()
            return
        self._link.core.reset(self._stream, frames.CANCEL)  # not every peer ends the stream by itself
        self._link.touch()
        if status in (401, 429) and self._entry.account is not None:
            self._entry.account.rebuffed()
        verdict = Verdict.REFUSED if status in (400, 401, 403, 429) else Verdict.FAILED
        self._drop(verdict, _ANSWERS.get(status, f"the other node answered {status}"))

    def reset(self, code: int) -> None:
        if code == frames.REFUSED_STREAM and self._again(unseen=True):
            return
        if code == frames.NO_ERROR and self._rest_eof and not self._connecting:
            self._eof = self._readable = True  # whatever the application may still send, nobody takes it
            self._finish()
            return
        self._drop(Verdict.ALLOWED if self._entry.state == "open" else Verdict.FAILED, "reset by the other side")

    def broken(self, reason: str, *, unseen: bool = False) -> None:
        if not self._again(unseen=unseen):
            self._drop(Verdict.FAILED, reason)

    def _again(self, *, unseen: bool) -> bool:
        """Hand the connection to another tunnel, if no byte of it can have reached the application yet.

        Early bytes go to the application as soon as it is connected, maybe before a tunnel dies with the answer to
        them: sending those again could do a thing twice. So they are only if the peer says that it did not look.
        """
        if self._retry is None or self._stream.answered or self._closed or (self._up and not unseen):
            return False
        self._leave()
        self._retry(self._sock, bytes(self._early))
        return True

    # ---- ends that are no clean ends

    def refuse(self, status: int, reason: str) -> None:
        """Answer the stream with `status` instead of carrying it."""
        self._link.core.answer(self._stream, status)
        self._link.touch()
        self._drop(Verdict.FAILED if status >= 500 else Verdict.REFUSED, reason)
        self._link.freed()

    def abort(self, reason: str = "", verdict: Verdict = Verdict.REFUSED) -> None:
        """End the connection at once, both ways, with a reset."""
        if self._connecting:
            self._link.core.answer(self._stream, 401 if verdict is Verdict.REFUSED else 503)
        else:
            self._link.core.reset(self._stream, RESET)
        self._link.touch()
        self._drop(verdict, reason)
        self._link.freed()

    def _lost(self, reason: str) -> None:
        self.abort(reason, Verdict.ALLOWED)

    def _drop(self, verdict: Verdict, reason: str) -> None:
        if not self._closed:
            self._leave()
            abort(self._sock)
            self._book.close(self._entry, verdict, reason)

    def _leave(self) -> None:
        self._closed = True
        self._stream.owner = NOBODY  # the two would keep each other alive until the next garbage collection
        self._pending.clear()
        self._gathered.clear()
        self._link.forget(self)
        self._link.relay.unregister(self._fd)


_ANSWERS = {
    400: "the other node knows no such workload behind this tunnel (400): its view may be older than ours",
    401: "refused by policy on the other node (401)",
    429: "over the budget of the workload that it was for (429)",
    503: "the workload does not accept connections there (503)",
}
