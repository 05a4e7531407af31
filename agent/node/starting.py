"""How a worker comes to be: at first one of those forked before all else, later a program started afresh."""

import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol

import trio

from agent.forking import Forked


class Process(Protocol):
    """A child of this process."""

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    def kill(self) -> None: ...

    async def wait(self) -> int: ...


class Adopted:
    """A child that no `subprocess` knows of."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._pidfd = os.pidfd_open(pid)

    def kill(self) -> None:
        """End it now; `wait` is still due."""
        if self.returncode is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    async def wait(self) -> int:
        """Its end, as subprocess has it; then there is nothing left to close. One task waits at a time; cancelling
        loses nothing."""
        if self.returncode is None:
            await trio.lowlevel.wait_readable(self._pidfd)
            _, status = os.waitpid(self.pid, 0)  # noqa: ASYNC222 - it has ended
            self.returncode = os.waitstatus_to_exitcode(status)
            os.close(self._pidfd)
        return self.returncode


class Starter:
    """Gives out the workers `forked`, which wait; after that it runs `command`, with a descriptor behind it."""

    def __init__(self, forked: Iterable[Forked] = (), command: Sequence[str] = ()) -> None:
        self._forked = deque(forked)
        self._command = tuple(command) or (sys.executable, "-m", "agent.worker")

    async def start(self) -> tuple[Process, socket.socket]:
        """A worker, and this end of its channel. Both are the caller's, who waits for the process to end. OSError."""
        if self._forked:
            waiting = self._forked.popleft()
            return Adopted(waiting.pid), waiting.sock
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = await trio.lowlevel.open_process(
                    [*self._command, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
                )
            except BaseException:
                ours.close()
                raise
        return process, ours
