"""A tunnel in the relay: a core, its TLS machine and its socket. Handles hostile bytes.

Towards the peer: legs place DATA into the link's batch (`slot`, `placed`), the core its other frames into `outgoing`;
`flush`, at the end of each round, encrypts all of it at once and sends it. What the socket does not take stays
`_unsent`, and until that has gone no leg gets a slot: the applications' sockets fill up, and so their senders wait.

From the peer: as much as one read holds is decrypted, split, handed to the legs, and delivered leg by leg.

Closing: `close` is the owner's or the link's own doing, once; legs still on it are told `broken`. Nothing here awaits.
A tunnel that drains ends otherwise (`_finish`): when its last stream has ended it sends what is left, ends its half,
and is closed when the peer has ended the other. To close at once would be a reset, for the peer's credit is always on
its way here, and a reset takes along what the kernel has not delivered yet.
"""

import socket
import time
from collections import OrderedDict, deque

from agent.connections import Direction, Tunnel
from agent.relay.loop import BATCH, BUFFER, EDGE, GONE, HALF_CLOSED, READ, WRITE, Relay
from agent.tunnel.core import Core, CoreError
from agent.tunnel.frames import DATA, HEADER_SIZE, header_into
from agent.tunnel.owner import NOBODY, Owner, Watcher
from agent.tunnel.stream import Answered, Asked, Data, Ended, GoAway, Reset, Settled, Stream, Writable
from agent.tunnel.terms import Terms
from ca.tls import TAKE, Machine, Memory, TlsClosed, TlsError

_LEAST_SLOT = 2**13  # a batch with less room than this is flushed rather than filled up
_FULL = BATCH - HEADER_SIZE - _LEAST_SLOT
_READS = 4  # reads of BUFFER a link may take in one round
_BACKLOG = 2**22
"""Bytes that may wait for a peer that does not read. A batch waits at most; the rest are answers to what the peer keeps
asking, and would grow for as long as it likes."""


class Link:
    """One tunnel. `terms` is what its handshake proved."""

    def __init__(
        self,
        relay: Relay,
        sock: socket.socket,
        machine: Machine,
        core: Core,
        watcher: Watcher,
        *,
        number: str,
        terms: Terms,
        address: str,
    ) -> None:
        """`address` is the peer's: its socket may not know any more, if it hung up right after the handshake."""
        self.relay, self.core, self.number, self.terms = relay, core, number, terms
        self.local, self.peer = terms.local, terms.peer
        self.peer_address = address
        self.closed = False
        self.reason = ""  # why it was closed
        self.heard = time.monotonic()
        self.idle_since: float | None = self.heard
        self.sent = self.received = 0
        self._sock, self._fd, self._machine, self._watcher = sock, sock.fileno(), machine, watcher
        self._opened_at = time.time()
        self._batch: Memory | None = None
        self._view = memoryview(b"")
        self._used = 0
        self._unsent: deque[memoryview] = deque()
        self._backlog = 0  # bytes in it
        self._waiting: OrderedDict[Owner, None] = OrderedDict()  # for room on the link as a whole, each once
        self._due = False
        self._ending = False  # the kernel said that the peer's end is in the socket's queue
        self._leaving = False

    def start(self) -> None:
        """Join the relay; what the handshake left decryptable is read first."""
        self.touch()
        self.relay.register(self._fd, self._ready, READ | WRITE | EDGE)
        self.relay.again(self._decrypt)

    def describe(self) -> Tunnel:
        """The tunnel as others see it."""
        return Tunnel(
            id=self.number,
            direction=Direction.OUTBOUND if self.core.client else Direction.INBOUND,
            local_identity=str(self.local),
            peer_identity=str(self.peer),
            peer_address=self.peer_address,
            opened=self._opened_at,
            streams=len(self.core.streams),
            carried=self.core.carried,
            sent=self.sent,
            received=self.received,
            state="draining" if self.core.draining else "open",
        )

    # ---- towards the peer

    def slot(self, stream: Stream, most: int) -> memoryview | None:
        """Room for up to `most` bytes of DATA, to be filled and `placed` at once; None if there is none now.

        Without room on the whole link the stream's owner is pumped later; without credit of its own, when that comes.
        """
        core = self.core
        room = core.room(stream, most)
        if room <= 0:
            if core.send_window <= 0:
                self._waiting[stream.owner] = None
            return None
        out = core.outgoing
        if self._used > _FULL - len(out):
            self._encrypt()
        if self._unsent or self.closed:
            self._waiting[stream.owner] = None
            return None
        if self._batch is None:
            self._begin()
        if out:
            self._gather()
        at = self._used + HEADER_SIZE
        end = at + room
        return self._view[at : end if end < BATCH else BATCH]

    def placed(self, stream: Stream, length: int) -> None:
        """So many bytes stand in the slot just given."""
        used = self._used
        header_into(self._view, used, length >> 8, length & 0xFF, DATA, 0, stream.id)
        self._used = used + HEADER_SIZE + length
        self.core.sent_data(stream, length)
        if not self._due:
            self.touch()

    def forget(self, owner: Owner) -> None:
        """It has left, and waits for nothing any more."""
        self._waiting.pop(owner, None)

    def touch(self) -> None:
        """There is something to flush."""
        if not self._due and not self.closed and not self._leaving:
            self._due = True
            self.relay.gathered(self)

    def flush(self) -> None:
        """Encrypt and send all that was gathered."""
        self._due = False
        if not (self.closed or self._leaving) and self._encrypt() and self._waiting:
            self._wake()

    def _wake(self) -> None:
        """Let those who wait go on, in their order; whoever finds no room any more waits behind the others."""
        for _ in range(len(self._waiting)):
            if self._unsent or self.core.send_window <= 0 or not self._waiting:
                return
            owner, _nothing = self._waiting.popitem(last=False)
            owner.pump()

    def _gather(self) -> None:
        """Move the core's frames behind the DATA placed so far, as far as they fit."""
        out = self.core.outgoing
        n = min(len(out), BATCH - self._used)
        self._view[self._used : self._used + n] = out[:n]
        self._used += n
        del out[:n]

    def _encrypt(self) -> bool:
        """Encrypt and send the batch and the core's frames; False if that was the end of the link."""
        out, sealed = self.core.outgoing, self.relay.sealed
        while out or self._batch is not None:
            batch = self._batch or self._begin()
            if out:
                self._gather()
            try:
                count = self._machine.seal(batch, self._used, sealed)
            except TlsError as error:
                self.core.outgoing.clear()
                self.close(str(error))
                return False
            self.relay.release(batch)
            self._batch, self._used = None, 0
            while count:
                if not self._send(sealed.view[:count]):
                    return False
                count = self._machine.take_into(sealed) if count == TAKE else 0
        return True

    def _begin(self) -> Memory:
        self._batch = batch = self.relay.batch()
        self._view = batch.view
        return batch

    def _drop_batch(self) -> None:
        if self._batch is not None:
            self.relay.release(self._batch)
            self._batch, self._used = None, 0

    def _send(self, sealed: memoryview) -> bool:
        """Send what was encrypted, or keep it; False if that was the end of the link."""
        n, count = 0, len(sealed)
        self.sent += count
        if not self._unsent:
            try:
                n = self._sock.send(sealed)
            except BlockingIOError:
                pass
            except OSError as error:
                self._gone(error)
                return False
        if n < count:
            self._unsent.append(memoryview(bytes(sealed[n:])))
            self._backlog += count - n
            if self._backlog > _BACKLOG:
                self.core.outgoing.clear()
                self.close(f"the peer at {self.peer_address} does not read what it asked for")
                return False
        return True

    def _gone(self, error: OSError) -> None:
        self.core.outgoing.clear()
        self._drop_batch()
        self._lost(f"is gone: {error.strerror}")

    def _lost(self, how: str) -> None:
        # In TLS 1.3 a server that refuses our certificate says so only after our handshake is done.
        hint = "" if self.core.settled else "; did it refuse our certificate?"
        self.close(f"the peer at {self.peer_address} {how}{hint}")

    def _resume(self) -> None:
        while self._unsent:
            piece = self._unsent[0]
            try:
                n = self._sock.send(piece)
            except BlockingIOError:
                return
            except OSError as error:
                self._gone(error)
                return
            self._backlog -= n
            if n < len(piece):
                self._unsent[0] = piece[n:]
                return
            self._unsent.popleft()
        if self._leaving:
            self._goodbye()
        else:
            self.touch()

    # ---- from the peer

    def _ready(self, mask: int) -> None:
        if mask & WRITE and self._unsent:
            self._resume()
        if mask & (READ | GONE) and not self.closed:
            self._ending |= bool(mask & (HALF_CLOSED | GONE))
            self._read()

    def _read(self) -> None:
        memory = self.relay.received
        for _ in range(_READS):
            if self.closed:
                return
            try:
                n = self._sock.recv_into(memory.view)
            except BlockingIOError:
                return
            except OSError as error:
                self._gone(error)
                return
            if n == 0:
                self._lost("closed the tunnel")
                return
            self.received += n
            self.heard = time.monotonic()
            if not self._leaving:
                try:
                    self._machine.arrived(memory, n)
                except TlsError as error:
                    self.close(str(error))
                    return
                self._decrypt()
            # Fewer bytes than asked for: the socket is empty, and a further arrival will be a new edge.
            if n < BUFFER and not self._ending:
                return
        self.relay.again(self._read)

    def _decrypt(self) -> None:
        memory, more = self.relay.opened, True
        while more and not self.closed and not self._leaving:
            try:
                n, more = self._machine.open(memory)
            except TlsClosed:
                self._lost("closed the tunnel")
            except TlsError as error:
                self._lost(f"broke TLS: {error}")
            else:
                self._act(memory.view[:n])

    def _act(self, data: memoryview) -> None:
        if not data or self.closed:
            return
        broke = False
        try:
            events = self.core.receive(data)
        except CoreError as error:
            # What came before it still counts: streams that ended there are no longer the core's to end.
            events, broke = error.events, True
            self.reason = f"the peer at {self.peer_address} broke HTTP/2: {error}"
        owners: list[Owner] = []
        ended = False
        last: Owner | None = None
        for event in events:
            if type(event) is Data:
                carrying, payload = event
                owner = carrying.owner
                owner.receive(payload)
                if owner is not last:
                    owners.append(owner)
                    last = owner
                continue
            match event:
                case Ended(stream):
                    stream.owner.ended()
                    owners.append(stream.owner)
                    ended = True
                case Reset(stream, code):
                    stream.owner.reset(code)
                    ended = True
                case Answered(stream, status):
                    stream.owner.answered(status)
                    ended |= status // 100 != 2
                case Asked(stream):
                    if not self.closed:  # by what came right before it
                        self._watcher.asked(self, event)
                    if stream.owner is None:
                        stream.owner = NOBODY  # it was refused, and more of it may follow in this very read
                case Writable(stream):
                    if stream is None:
                        self._wake()
                    else:
                        stream.owner.pump()
                case Settled():
                    self._watcher.roomier(self)
                case GoAway(_, unseen):
                    self._watcher.leaving(self)
                    ended = True
                    for stream in unseen:
                        stream.owner.broken("the peer is going away and did not look at it", unseen=True)
        for owner in owners:
            owner.deliver()
        if broke:
            self.close("")
            return
        if self.core.outgoing:
            self.touch()
        if ended and not self.closed:
            self.freed()

    # ---- as a whole

    def freed(self) -> None:
        """A stream may have ended: tell who waits for room, and finish draining."""
        if self.core.streams:
            self.idle_since = None
        elif self.core.draining:
            self._finish()
            return
        elif self.idle_since is None:
            self.idle_since = time.monotonic()
        self._watcher.roomier(self)

    def shrink(self) -> None:
        """Give back memory that only large batches need."""
        self._machine.shrink()

    def ping(self) -> None:
        """Ask the peer for a sign of life."""
        self.core.ping()
        self.touch()

    def drain(self) -> None:
        """Take no new streams and close when the last has ended."""
        self.core.drain()
        self._watcher.leaving(self)
        if self.core.streams:
            self.touch()
        else:
            self._finish()

    def _finish(self) -> None:
        if self._leaving or self.closed:
            return
        if self.reason:
            self.close("")  # the peer broke a rule: nothing is waited for
            return
        if self.idle_since is None:
            self.idle_since = time.monotonic()
        if self._encrypt():
            self._leaving = True
            if not self._unsent:
                self._goodbye()

    def _goodbye(self) -> None:
        self._machine.close()
        try:
            if goodbye := self._machine.take():
                self._sock.send(goodbye)
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self._gone(error)

    def close(self, reason: str) -> None:
        """End the tunnel and whatever it still carries."""
        if self.closed:
            return
        self.closed, self.reason = True, reason or self.reason or "the tunnel was closed"
        if (self.core.outgoing or self._batch is not None) and not self._leaving:
            self._encrypt()  # last words, which a peer that is gone does not hear
        self._drop_batch()
        self._machine.close()
        if not self._unsent and (goodbye := self._machine.take()):
            try:
                self._sock.send(goodbye)
            except OSError:
                pass
        self.relay.unregister(self._fd)
        self._sock.close()
        self._waiting.clear()
        self._watcher.leaving(self)
        for stream in self.core.abandon():
            if stream.owner is not None:
                stream.owner.broken(self.reason)
