"""The relay: one epoll set, moving bytes for every connection of a worker.

In a worker the relay is the loop of the process, and trio its guest (`host`): a message that wakes the worker wakes
nothing else. trio's own waiting is then done by a thread, which costs what needs trio (handshakes, messages of the
supervisor) a little, and what only moves bytes nothing. Elsewhere the relay is a task (`run`). Either way, a round:

    1. ready descriptors: each handler moves a bounded number of bytes
    2. `again`: handlers that stopped at their bound go on, after everybody else had a turn
    3. flush: what the round gathered for each tunnel is encrypted and sent in one go

Everything registered is edge-triggered and registered once: a handler remembers that it may read or write until the
kernel says EAGAIN (or moves fewer bytes than asked). Handlers are plain functions and never raise for what a peer does;
one that raises is a bug and ends the worker, loudly.
"""

import contextlib
import errno
import fcntl
import os
import resource
import select
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from agent.relay.busypoll import BusyPoll
from agent.relay.pipes import Pipes
from ca.tls import RECORD, TAKE, Memory

BUFFER = 2**18
"""Bytes moved by one system call at most: where larger ones stopped paying (docs/performance.md)."""
BATCH = BUFFER + 2**13
"""A batch: one full BUFFER and the frame headers within it."""
_ROUNDS = 16  # before trio's other tasks get a turn, though connections are still ready
_EVENTS = 512

READABLE = select.EPOLLIN
READ = READABLE | select.EPOLLRDHUP | select.EPOLLPRI
WRITE = select.EPOLLOUT
EDGE = select.EPOLLET
BROKEN = select.EPOLLERR
GONE = select.EPOLLHUP | BROKEN
HALF_CLOSED = select.EPOLLRDHUP | select.EPOLLPRI
"""Something stands behind what a read gave that was asked for more: the end, or what follows an urgent byte (EPOLLPRI),
at which the kernel has each read stop."""
ACCEPT = select.EPOLLIN | 1 << 28  # EPOLLEXCLUSIVE: of several workers wake one

_DESCRIPTORS = 2**16

Handler = Callable[[int], None]


class Flushable(Protocol):
    """Something that gathers during a round."""

    def flush(self) -> None:
        """Send what was gathered."""


class Relay:
    """Owns the epoll set; closes it when `run` ends. Registered sockets belong to whoever registered them.

    `received`, `opened` and `sealed` are scratch memory for one read, its bytes decrypted, and one batch encrypted:
    their content is void as soon as the handler that filled them returns.
    """

    def __init__(self, busy_poll: float = 0.0) -> None:
        """A host looks up to `busy_poll` seconds for more before it sleeps, where that pays."""
        self._epoll = select.epoll()
        self._busy_poll = BusyPoll(busy_poll)
        self._handlers: dict[int, Handler] = {}
        self._again: list[Callable[[], None]] = []
        self._gathered: list[Flushable] = []
        self._batches: list[Memory] = []
        self._stale: set[int] = set()  # descriptors that were unregistered in this round
        self._running = False
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.received = Memory(BUFFER)
        self.opened = Memory(BUFFER + RECORD)
        self.sealed = Memory(TAKE)
        self.pipes = Pipes()
        self.register(self._bell, lambda _mask: self._rung(), READ)

    def register(self, fd: int, handler: Handler, mask: int) -> None:
        """Call `handler(mask)` whenever `fd` becomes ready for one of `mask`."""
        self._handlers[fd] = handler
        self._epoll.register(fd, mask)

    def change(self, fd: int, mask: int) -> None:
        """From now on call its handler for `mask`; what is ready already counts as new."""
        self._epoll.modify(fd, mask)

    def unregister(self, fd: int) -> None:
        """Before `fd` is closed."""
        if self._handlers.pop(fd, None):
            self._epoll.unregister(fd)
            self._stale.add(fd)

    def again(self, action: Callable[[], None]) -> None:
        """Run `action` in the next round, after those that are ready now."""
        self._again.append(action)
        if not self._running:
            self._ring()

    def gathered(self, link: Flushable) -> None:
        """Have `link` flushed at the end of this round."""
        self._gathered.append(link)
        if not self._running:
            self._ring()

    def batch(self) -> Memory:
        """BATCH bytes to gather in; give them back with `release`."""
        return self._batches.pop() if self._batches else Memory(BATCH)

    def release(self, batch: Memory) -> None:
        """Take back a batch; a few are kept."""
        if len(self._batches) < 8:
            self._batches.append(batch)

    def shrink(self) -> None:
        """Give back the pages of all scratch memory; between rounds."""
        for memory in (self.received, self.opened, self.sealed, *self._batches):
            memory.forget()

    def host(self, main: Callable[[], Awaitable[None]]) -> None:
        """Move bytes, and run `main` in trio beside that, until it ends."""
        _make_room(self._bell)  # before there is a second thread
        result: list[Callable[[], None]] = []
        calls: deque[Callable[[], object]] = deque()

        def soon(call: Callable[[], object]) -> None:
            calls.append(call)
            self._ring()  # trio's thread may be the one that calls

        trio.lowlevel.start_guest_run(
            main,
            run_sync_soon_threadsafe=soon,
            run_sync_soon_not_threadsafe=calls.append,
            done_callback=lambda outcome: result.append(outcome.unwrap),
        )
        self._running = True
        try:
            while not result:
                self._round(wait=not calls)
                for _ in range(len(calls)):
                    calls.popleft()()
        finally:
            self._close()
        result[0]()

    async def run(self) -> None:
        """Move bytes as a task of trio's, until cancelled."""
        try:
            while True:
                if not (self._again or self._gathered):
                    await trio.lowlevel.wait_readable(self._epoll.fileno())
                self._running = True
                for _ in range(_ROUNDS):
                    if not self._round():
                        break
                self._running = False
                if self._again or self._gathered:
                    await trio.lowlevel.checkpoint()
        finally:
            self._close()

    def _close(self) -> None:
        self._epoll.close()
        os.close(self._bell)

    def _round(self, *, wait: bool = False) -> bool:
        """One round, with what is ready, or else (with `wait`) what will be; -> whether there was anything to do."""
        if wait and not (self._again or self._gathered):
            ready = self._busy_poll.look(self._poll) or self._epoll.poll(None, _EVENTS)
        else:
            ready = self._poll()
        if not (ready or self._again or self._gathered):
            return False
        handlers, stale = self._handlers, self._stale
        stale.clear()
        for fd, mask in ready:
            # An earlier handler of this round may have closed it, and its number may be another socket's by now.
            if stale and fd in stale:
                continue
            handlers[fd](mask)
        if self._again:
            actions, self._again = self._again, []
            for action in actions:
                action()
        if self._gathered:
            links, self._gathered = self._gathered, []
            for link in links:
                link.flush()
        return True

    def _poll(self) -> list[tuple[int, int]]:
        return self._epoll.poll(0, _EVENTS)

    def _ring(self) -> None:
        """Wake `run`: something outside it (a trio task) left work."""
        os.eventfd_write(self._bell, 1)

    def _rung(self) -> None:
        try:
            os.eventfd_read(self._bell)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise


def _make_room(fd: int) -> None:
    """Have the kernel make the table of this process's descriptors as large as it will ever be needed.

    It doubles the table when it is full, and in a process with two threads waits for every core to pass by then (RCU):
    10 to 20 ms for all connections, at the 65th, the 129th and so on.
    """
    most = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], _DESCRIPTORS)
    with contextlib.suppress(OSError):
        os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, most - 1))
