"""Where a program runs: a network namespace, a uid and a cgroup; and the command line that puts it there.

`nsenter` enters the network namespace alone. `ip netns exec` would also remount /sys and so hide the cgroup tree from
an agent that must see it.
"""

import contextlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agent.lab.namespace import Namespace
from redirect.cgroup import mount_point


@dataclass(frozen=True, slots=True)
class Place:
    """`uid` None keeps ours; `cgroup` is a cgroup v2 path below its mount point, made with `create_cgroup`."""

    namespace: Namespace
    uid: int | None = None
    cgroup: str | None = None

    def socket(self, family: int = socket.AF_INET) -> socket.socket:
        """A TCP socket as a program there would make it; the caller closes it. The kernel takes a socket's cgroup from
        the process that makes it, so this is for places without one."""
        assert self.cgroup is None, "run a program there instead"
        return self.namespace.socket(family, uid=self.uid)

    def command(self, argv: Sequence[str | os.PathLike[str]], *, mortal: bool = False) -> list[str]:
        """`argv`, run there. With `mortal` the kernel kills it when the thread that started it ends."""
        line = ["nsenter", f"--net={self.namespace.path}"]
        if self.cgroup is not None:
            # 0 is the writer itself; the shell becomes the program, so the program starts out in the cgroup.
            procs = _directory(self.cgroup) / "cgroup.procs"
            line += ["sh", "-c", 'echo 0 > "$0" && exec "$@"', str(procs)]
        if self.uid is not None or mortal:
            line += ["setpriv"]
        if self.uid is not None:
            line += [f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups"]
        if mortal:
            line += ["--pdeathsig=KILL"]
        return [*line, *(os.fspath(a) for a in argv)]


def create_cgroup(path: str) -> None:
    """Make the cgroup; OSError when the machine does not let us."""
    _directory(path).mkdir(parents=True, exist_ok=True)


def remove_cgroup(path: str) -> None:
    """Remove the cgroup when its last process has gone; waits up to a second for the kernel to notice."""
    directory = _directory(path)
    for _ in range(100):
        with contextlib.suppress(FileNotFoundError):
            try:
                directory.rmdir()
            except OSError:
                time.sleep(0.01)
                continue
        return
    raise OSError(f"cgroup {path} still holds processes {(directory / 'cgroup.procs').read_text().split()}")


def _directory(path: str) -> Path:
    mount = mount_point()
    if mount is None:
        raise OSError("no cgroup v2 is mounted here")
    return Path(mount, path)
