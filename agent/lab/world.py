"""A private world for a whole lab: its own users, mounts, processes and network, all ended by the kernel with it.

The program starts itself again inside. As root that buys certainty (nothing survives even SIGKILL, and the machine's
own network is out of reach of a mistake); as an ordinary user it buys the rights to have namespaces at all. A user's
world has one uid and no cgroups, and `Privilege` says so to whoever plans a lab.
"""

import contextlib
import enum
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

import trio

from agent.lab.orphans import remove_orphans

_OWNER, _LIFELINE = "CULVERT_LAB_OWNER", "CULVERT_LAB_LIFELINE"
"""Set inside: the process id, outside, of the lab's owner; and the file descriptor that ends when it does."""


class Privilege(enum.Enum):
    """What a lab may do here."""

    ROOT = "root"
    USER = "user"


class WorldError(Exception):
    """This machine does not let us have a world of our own; the message has the command and its error."""


def owner() -> int | None:
    """Inside a world: the process id, outside, of its owner; None outside."""
    text = os.environ.get(_OWNER)
    return int(text) if text else None


def privilege() -> Privilege:
    """What this process may do, once it is inside a world or is root outside."""
    with open("/proc/self/uid_map") as table:
        _, _, count = table.read().split()[:3]
    return Privilege.ROOT if os.geteuid() == 0 and int(count) > 1 else Privilege.USER


def command(argv: Sequence[str]) -> list[str]:
    """The command line that runs `argv` in a new world. /run starts empty there: named namespaces live below it."""
    users = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    inside = 'mount -t tmpfs -o mode=755 lab /run && mkdir /run/netns && exec "$@"'
    return [
        *("unshare", *users, "--mount", "--pid", "--net", "--fork", "--kill-child=SIGKILL", "--mount-proc"),
        *("sh", "-c", inside, "sh", *argv),
    ]


def check() -> None:
    """Raise WorldError unless a world can be made here."""
    if shutil.which("unshare") is None:
        raise WorldError("unshare is not installed: apt-get install util-linux")
    probe = command(["true"])
    done = subprocess.run(probe, capture_output=True, text=True)
    if done.returncode:
        raise WorldError(
            f"this machine lets {'root' if os.geteuid() == 0 else 'an ordinary user'} make no namespaces: "
            f"`{' '.join(probe)}` said: {done.stderr.strip()}"
        )


def _inherited() -> dict[str, str]:
    """Without what says where the mesh of the person before the screen is, and how it is set: in here is another."""
    return {name: value for name, value in os.environ.items() if not name.startswith("CULVERT_")}


def run(module: str, arguments: Sequence[str], grace: float = 10.0) -> int:
    """Run `python -m module arguments` in a new world; its exit status, or 130 when it was told to end.

    Told by a lifeline: a pipe whose far end only we hold. A signal to us closes it, and so does our own death, SIGKILL
    included. The program inside awaits `ended` and cleans up; after `grace` seconds the kernel ends the world instead.
    """
    remove_orphans()
    theirs, ours = os.pipe()
    child = subprocess.Popen(
        command([sys.executable, "-m", module, *arguments]),
        env={**_inherited(), _OWNER: str(os.getpid()), _LIFELINE: str(theirs)},
        pass_fds=[theirs],
        start_new_session=True,  # the terminal's Ctrl-C comes to us alone
    )
    os.close(theirs)
    os.write(ours, b"%d\n" % child.pid)
    told = threading.Event()

    def tell(*_: object) -> None:
        if not told.is_set():
            told.set()
            os.close(ours)

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        while child.poll() is None and not told.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.2)
        if told.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(grace)
        return 130 if told.is_set() else child.wait()
    finally:
        child.kill()
        child.wait()
        for number, handler in before.items():
            signal.signal(number, handler)
        tell()
        remove_orphans(of=os.getpid())


def outside_pid() -> int:
    """Inside a world: a process outside whose mount and user namespaces are the world's, for `nsenter --target`. To be
    asked once."""
    return int(os.read(int(os.environ[_LIFELINE]), 20))


async def ended() -> None:
    """Inside a world, after `outside_pid`: returns when the owner is gone or wants us to end."""
    await trio.lowlevel.wait_readable(int(os.environ[_LIFELINE]))
