"""Kernel pipes for moving bulk between two sockets without seeing it (splice)."""

import fcntl
import os
import resource

CAPACITY = 2**20
"""Bytes asked for in a pipe: as many as an ordinary user may have. With fewer granted, splice moves fewer at once."""
_KEPT = 16  # empty pipes kept for the next bulk flow
_SHARE = 8  # of a worker's descriptors, one in so many: they are charged to no workload, and copying does as well
_FLAGS = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


class Pipe:
    """Bytes on their way from one socket to another. `held` of them are in the pipe now. Closed by `close`."""

    __slots__ = ("_read", "_write", "held")

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        try:
            fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, CAPACITY)
        except OSError:
            pass  # the user's share of pipe memory is used up: smaller ones do as well, only slower

    def fill(self, fd: int) -> int:
        """Take what `fd` has, into an empty pipe; 0 is its end. BlockingIOError when it has nothing now."""
        self.held = os.splice(fd, self._write, CAPACITY, flags=_FLAGS)
        return self.held

    def drain(self, fd: int) -> int:
        """Give what is held to `fd`; -> bytes it took. BlockingIOError when it takes nothing now."""
        moved = os.splice(self._read, fd, self.held, flags=_FLAGS)
        self.held -= moved
        return moved

    def close(self) -> None:
        """Whatever is held is lost."""
        os.close(self._read)
        os.close(self._write)


class Pipes:
    """The pipes of a worker, of which there are only so many; a few empty ones are kept."""

    def __init__(self) -> None:
        self._spare: list[Pipe] = []
        self._open = 0
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE // 2

    def take(self) -> Pipe | None:
        """An empty pipe; None when descriptors are short, and the flow goes on without."""
        if self._spare:
            return self._spare.pop()
        if self._open >= self._most:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self._open += 1
        return pipe

    def give(self, pipe: Pipe) -> None:
        """Hand a pipe back."""
        if pipe.held or len(self._spare) >= _KEPT:
            pipe.close()
            self._open -= 1
        else:
            self._spare.append(pipe)
