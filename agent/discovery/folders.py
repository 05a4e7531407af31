"""Changes in directories, told by the kernel (inotify) also while a directory or the ones above it are not there yet.

A program that saves a file makes a burst of events, so what is told is only that something happened: the listener
waits until it is quiet for SETTLE seconds and then looks at everything.
"""

import contextlib
import ctypes
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog
import trio

log: structlog.stdlib.BoundLogger = structlog.get_logger()

SETTLE, LONGEST_SETTLE = 0.03, 0.3
"""Seconds of quiet before a look, and the longest that a noisy directory can put it off."""
LOOK = 1.0
"""Seconds between looks where the kernel can tell nothing (fs.inotify limits)."""

_MODIFY, _ATTRIB, _CLOSE_WRITE, _MOVED, _CREATE, _DELETE = 0x2, 0x4, 0x8, 0xC0, 0x100, 0x200
_ONLY_DIRECTORIES, _MASK_ADD = 0x01000000, 0x20000000
_HERE = _ATTRIB | _CLOSE_WRITE | _MOVED | _CREATE | _DELETE | _ONLY_DIRECTORIES | _MASK_ADD
_ABOVE = _MOVED | _CREATE | _DELETE | _ONLY_DIRECTORIES | _MASK_ADD
_EVENTS = 64 * 1024


class Folders:
    """Watches the directories given to `watch`. Whoever makes it closes it, or uses it in a `with` block."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            log.warning("folders-not-watched", error=os.strerror(ctypes.get_errno()), looking_every=LOOK)

    def __enter__(self) -> "Folders":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def watch(self, folders: Iterable[Path]) -> None:
        """From now on changes in these are news, and so is it when one of them, or of those above, comes or goes. To
        be called before each look: a directory that came again is a new one. Watching twice is once."""
        if self._fd < 0:
            return
        for folder in folders:
            self._add(folder, _HERE)
            for above in folder.parents:
                self._add(above, _ABOVE)

    def _add(self, folder: Path, mask: int) -> None:
        self._libc.inotify_add_watch(self._fd, os.fsencode(folder), mask)

    async def news(self) -> None:
        """Returns when something happened and it has been quiet since, or after LOOK seconds where nobody tells."""
        if self._fd < 0:
            await trio.sleep(LOOK)
            return
        await trio.lowlevel.wait_readable(self._fd)
        with trio.move_on_after(LONGEST_SETTLE):
            while True:
                self._drain()
                with trio.move_on_after(SETTLE) as quiet:
                    await trio.lowlevel.wait_readable(self._fd)
                if quiet.cancelled_caught:
                    return

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _EVENTS):
                pass


class TooMuch(Exception):
    """A file or directory is larger than we read."""


def read_small(path: Path, most: int) -> str:
    """The text of a file of at most `most` bytes. OSError, UnicodeDecodeError or TooMuch."""
    # Never waits: what is no plain file (a pipe that somebody put there) is not opened for reading at all.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise TooMuch("it is no plain file")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(most + 1)
    finally:
        os.close(fd)
    if len(data) > most:
        raise TooMuch(f"it has more than {most} bytes")
    return data.decode()


def entries(folder: Path, most: int) -> Iterator[Path]:
    """The files of a directory in order, without hidden ones; none if it is not there. OSError or TooMuch."""
    try:
        with os.scandir(folder) as found:
            names = [entry.name for _, entry in zip(range(most + 1), found, strict=False)]
    except (FileNotFoundError, NotADirectoryError):
        return
    if len(names) > most:
        raise TooMuch(f"it holds more than {most} files")
    for name in sorted(names):
        if not name.startswith("."):
            yield folder / name
