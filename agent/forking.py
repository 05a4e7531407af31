"""Workers forked from the supervisor at its very start, instead of programs started afresh.

What was imported before, supervisor and worker share page by page, until one of them writes there: the reference counts
of objects do that to about half of it. The rest would be there once more for each worker.

A process is forked before the supervisor has a thread, a secret, a socket, a log: so no worker inherits any, and to
fork is safe. Later there is no such moment any more: a worker that replaces one is started afresh
(agent/node/starting.py).
"""

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

WORKER = ("culvert-worker", "culvert: worker")
"""What workers call themselves."""

_PR_SET_NAME = 15

SHARED = (
    "agent.channel",
    "agent.openings",
    "agent.policy",
    "agent.tally",
    "ca.contract",
    "ca.revoked",
    "ca.tls",
    "ca.x509",
    "ctypes",
    "redirect.origdst",
)
"""What both sides import, with all that it imports itself. What only one of them does is better left to it: the other
would hold a copy of each page that is written to."""

Serve = Callable[[int], None]
"""Be the worker at the other end of this descriptor; return when there is nothing more to do."""


@dataclass(frozen=True, slots=True)
class Forked:
    """A worker that waits for its first message. Closing `sock`, the supervisor's end of its channel, ends it."""

    pid: int
    sock: socket.socket


def fork_workers(serve: Serve, count: int) -> list[Forked]:
    """Children of this process, which has one thread and nothing yet that workers must not have; fewer than `count`
    when the kernel gives no more."""
    for name in SHARED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection writes to whatever it looks at, and so would make copies of all pages
    forked: list[Forked] = []
    for _ in range(count):
        try:
            ours, theirs = socket.socketpair()
        except OSError:
            break
        with theirs:
            try:
                pid = os.fork()
            except OSError:
                ours.close()
                break
            if not pid:
                _live(serve, theirs.fileno())
        forked.append(Forked(pid, ours))
    return forked


def call_itself(comm: str, title: str) -> None:
    """Show as `comm` (at most 15 characters) in `ps` and `pgrep`, and where they show whole command lines, as `title`.

    The latter overwrites the arguments that this process was started with, as far as there is room.
    """
    ctypes.CDLL(None).prctl(_PR_SET_NAME, ctypes.c_char_p(comm.encode()), 0, 0, 0)
    with contextlib.suppress(OSError, ValueError, IndexError):
        # What follows the name, which may hold blanks and brackets itself, begins with field 3.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        begin, end = int(fields[48 - 3]), int(fields[49 - 3])
        if 0 < begin < end:
            ctypes.memmove(begin, title.encode()[: end - begin - 1].ljust(end - begin, b"\0"), end - begin)


def _live(serve: Serve, channel: int) -> NoReturn:
    """Be a worker as if the program had been started for that, and end as the interpreter would: what this process's
    parent has still to do is not its own."""
    status: object = 1
    try:
        _keep_only(channel)
        # Ctrl-C is for the supervisor, which drains.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        call_itself(*WORKER)
        serve(channel)
        status = None
    except SystemExit as error:
        status = error.code
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(OSError):
        if isinstance(status, str):
            print(status, file=sys.stderr)
        sys.stderr.flush()
    os._exit(status if isinstance(status, int) else status is not None)


def _keep_only(descriptor: int) -> None:
    """Close all but this descriptor and the standard three, of which the first reads nothing from now on."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for other in map(int, os.listdir("/proc/self/fd")):
        if other > 2 and other != descriptor:
            with contextlib.suppress(OSError):  # that by which they were listed is closed already
                os.close(other)
