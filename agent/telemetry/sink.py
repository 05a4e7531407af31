"""Lines to a file, by a thread of its own: a full disk, a slow terminal or a pipe nobody reads stops nothing else.

What waits is bounded; what does not fit is dropped and counted. `reopen` (SIGHUP) makes the thread open the path anew,
as log rotation wants it.
"""

import contextlib
import os
import queue
import threading

QUEUE = 10_000
"""Lines that may wait: a few megabytes, and some seconds of a busy node."""
FAREWELL = 1.0
"""Seconds that `close` waits for the queue to empty."""


class _Order:
    pass


_REOPEN, _END = _Order(), _Order()


class Sink:
    """Writes to `path`, or for `-` to `standard`, stdout or stderr. OSError if it cannot be opened at first; later the
    lines are dropped."""

    def __init__(self, path: str, size: int = QUEUE, standard: int = 1) -> None:
        self._path = path
        self._standard = standard
        self._size = size
        self._queue: queue.SimpleQueue[tuple[bytes, int] | _Order] = queue.SimpleQueue()
        self._queued, self._taken = 0, 0  # lines; each is counted up by one thread only
        self._dropped = 0
        self._lost = 0
        self._torn = False
        """Whether the last line that was written is but half there, which must not swallow the next."""
        self._fd = self._open()
        self._thread = threading.Thread(target=self._run, name=f"sink {path}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines lost so far."""
        return self._dropped + self._lost

    def write(self, lines: bytes, count: int = 1) -> None:
        """Queue lines, their ends included. Never blocks."""
        if self._queued - self._taken + count > self._size:
            self._dropped += count
        else:
            self._queued += count
            self._queue.put((lines, count))

    def reopen(self) -> None:
        """Open the path anew before the next line."""
        self._queue.put(_REOPEN)

    def close(self) -> None:
        """Write what is queued, for FAREWELL seconds at most. Blocks that long."""
        self._queue.put(_END)
        self._thread.join(FAREWELL)

    def _open(self) -> int:
        if self._path == "-":
            return os.dup(self._standard)
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _run(self) -> None:
        fd = self._fd
        while (item := self._queue.get()) is not _END:
            if item is _REOPEN:
                with contextlib.suppress(OSError):
                    fresh = self._open()
                    os.close(fd)
                    fd, self._torn = fresh, False
            elif isinstance(item, tuple):
                self._put(fd, *item)
        os.close(fd)

    def _put(self, fd: int, lines: bytes, count: int) -> None:
        rest = memoryview(b"\n" + lines if self._torn else lines)
        try:
            while rest:
                done = os.write(fd, rest)
                self._torn = rest[done - 1] != ord("\n")
                rest = rest[done:]
        except OSError:
            self._lost += count
        self._taken += count
