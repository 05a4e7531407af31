"""One worker process as the supervisor sees it: started, fed, listened to, ended.

What is to be said waits in a queue and is sent by one task, so that a slow worker never holds the supervisor up. One
that lets QUEUE messages pile up, or answers no Inquire for SILENCE, hangs: it is killed, and its place filled anew.
"""

import itertools
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog
import trio
from msgspec import structs

from agent.channel import Channel, ChannelBrokenError, ChannelClosedError, supervisor_end
from agent.messages import (
    FROM_WORKER,
    TO_WORKER,
    Active,
    Closed,
    Drain,
    Inquire,
    Notice,
    Ready,
    StockWanted,
    Tables,
)
from agent.node.starting import Process, Starter

log: structlog.stdlib.BoundLogger = structlog.get_logger()

QUEUE = 10_000
"""Messages that may wait: a hundred seconds of a busy mesh's changes."""
PULSE, SILENCE = 5.0, 30.0
"""Seconds between signs of life asked for, and without one until a worker counts as hanging."""

Told = Callable[["Child", Closed | StockWanted | Notice], None]


class Descriptor(Protocol):
    """A socket, or anything else that has a file descriptor."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


class Child:
    """A worker process. `run` is its life; everything else may be called at any time during it.

    `number` is never used for another process, so that the ids of connections are unique on the node; `slot` is that of
    the one it replaces. `told` gets what the worker says of its own accord; `met` is called when it has become ready,
    before anything else is said to it; `progress` when it has become ready or active.
    """

    def __init__(
        self,
        number: int,
        slot: int,
        told: Told,
        met: Callable[["Child"], None],
        progress: Callable[[], None],
        starter: Starter,
    ) -> None:
        self.number, self.slot = number, slot
        self.pid = 0
        self.ready = False
        self.active = 0
        self.draining = False
        self.last_tables: Tables | None = None
        self._told, self._met, self._progress = told, met, progress
        self._starter = starter
        self._queue: deque[tuple[TO_WORKER, tuple[Descriptor, ...], bool]] = deque()
        self._news = trio.Event()
        self._inquiries = itertools.count(1)
        self._asked: dict[int, trio.Event] = {}
        self._answers: dict[int, Tables] = {}
        self._heard = 0.0
        self._end: trio.CancelScope | None = None
        self._killed = False
        self.gone = False

    def say(self, message: TO_WORKER, socks: Sequence[Descriptor] = (), *, give: bool = False) -> None:
        """Queue a message with duplicates of `socks`; with `give` they are closed once sent."""
        if self.gone:
            _close(socks if give else ())
            return
        self._queue.append((message, tuple(socks), give))
        self._news.set()
        if len(self._queue) > QUEUE:
            self.kill()

    def kill(self) -> None:
        """End it now; `run` returns."""
        if self._end:
            self._killed = True
            self._end.cancel()

    async def tables(self, seconds: float, whole: bool = True) -> Tables | None:
        """Its live tables, or not `whole` only gauges; None if it does not answer in time or ends."""
        number = next(self._inquiries)
        answered = self._asked[number] = trio.Event()
        try:
            self.say(Inquire(number, whole))
            with trio.move_on_after(seconds):
                await answered.wait()
            found = self._answers.pop(number, None)
            return None if found is None or found.more else found
        finally:
            del self._asked[number]

    def drain(self, seconds: float) -> None:
        """Let it finish its connections; `run` returns when it has ended."""
        self.draining = True
        self.say(Drain(seconds))

    async def run(self) -> str:
        """From start to end; returns how it ended. Cancelling kills the process."""
        how = "ended"
        try:
            process, sock = await self._starter.start()
            self.pid = process.pid
            channel = supervisor_end(sock)
            try:
                async with trio.open_nursery() as nursery:
                    self._end = nursery.cancel_scope
                    nursery.start_soon(self._send, channel)
                    nursery.start_soon(self._pulse)
                    how = await self._listen(channel)
                    nursery.cancel_scope.cancel()
                if self._killed:
                    how = "hung and was killed"
            finally:
                await _reap(process)
                channel.close()
        except OSError as error:
            return f"could not be started: {error.strerror}"
        finally:
            self._over()
        return how if process.returncode == 0 else f"{how}, {_status(process.returncode)}"

    def _over(self) -> None:
        self.gone, self.ready = True, False
        while self._queue:
            _, socks, give = self._queue.popleft()
            _close(socks if give else ())
        for event in self._asked.values():
            event.set()

    async def _send(self, channel: "Channel[TO_WORKER, FROM_WORKER]") -> None:
        while True:
            while self._queue:
                message, socks, give = self._queue.popleft()
                fds: list[int] = []
                try:
                    # A listener that was closed again before its turn came has no descriptor any more. One that is
                    # closed while the worker is slow to take it must not be sent by a number that is another's by then.
                    if all(sock.fileno() >= 0 for sock in socks):
                        fds += [os.dup(sock.fileno()) for sock in socks]
                        await channel.send(message, fds)
                except (ChannelClosedError, ChannelBrokenError):
                    return  # the reader notices, and says how
                except OSError as error:
                    log.error("worker-not-told", pid=self.pid, why=error.strerror)
                    self.kill()
                    return
                finally:
                    for fd in fds:
                        os.close(fd)
                    _close(socks if give else ())
            self._news = trio.Event()
            await self._news.wait()

    async def _listen(self, channel: "Channel[TO_WORKER, FROM_WORKER]") -> str:
        while True:
            try:
                message, fds = await channel.receive()
            except ChannelClosedError:
                return "ended"
            except ChannelBrokenError as error:
                return f"was killed, because what it says makes no sense: {error}"
            for fd in fds:
                os.close(fd)  # it has none to give
            self._heard = trio.current_time()
            match message:
                case Ready():
                    self.ready = True
                    self._met(self)
                    self._progress()
                case Active(revision):
                    self.active = revision
                    self._progress()
                case Tables():
                    self._answered(message)
                case Closed() | StockWanted() | Notice():
                    self._told(self, message)

    def _answered(self, tables: Tables) -> None:
        number, event = tables.id, self._asked.get(tables.id)
        if (before := self._answers.pop(number, None)) is not None:
            tables = structs.replace(tables, connections=before.connections + tables.connections)
        if event is not None:
            self._answers[number] = tables
        if not tables.more:
            self.last_tables = tables
            if event is not None:
                event.set()

    async def _pulse(self) -> None:
        self._heard = trio.current_time()
        while True:
            await trio.sleep(PULSE)
            self.say(Inquire(0, whole=False))
            if trio.current_time() - self._heard > SILENCE:
                self.kill()


def _close(socks: Sequence[Descriptor]) -> None:
    for sock in socks:
        sock.close()


async def _reap(process: Process) -> None:
    with trio.CancelScope(shield=True):
        with trio.move_on_after(0.5 if process.returncode is None else 0):
            await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


def _status(code: int | None) -> str:
    if code is not None and code < 0:
        known = -code in set(signal.Signals)  # of the real-time ones only the first and the last have a name
        return f"by signal {signal.Signals(-code).name if known else -code}"
    return f"with status {code}"
