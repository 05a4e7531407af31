"""Owns everything a lab puts on this machine: namespaces, cgroups, processes, files.

`async with open_lab() as lab` ends with nothing left, also after an exception, a cancellation or Ctrl-C. What a killed
run left behind (SIGKILL leaves us no last word) is removed by the next one: see `orphans`.
"""

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from agent.lab import orphans, world
from agent.lab.orphans import remove_orphans
from agent.lab.place import Place, create_cgroup, remove_cgroup
from agent.lab.process import Process
from agent.lab.topology import Topology

_counter = itertools.count(1)


@dataclass(slots=True)
class Lab:
    """A topology, a directory that every uid can reach, and the processes started so far. The directory's name is
    unique on the machine, and also that of the cgroup which all others are in."""

    directory: Path
    topology: Topology
    processes: list[Process] = field(default_factory=list)
    cgroups: list[str] = field(default_factory=list)

    def start(
        self,
        name: str,
        place: Place,
        argv: Sequence[str | os.PathLike[str]],
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a program; it ends with the lab at the latest. Its output is `NAME.log` in the lab's directory."""
        process = Process(name, place, argv, self.directory / f"{name}.log", env, cwd=self.directory)
        self.processes.append(process)
        return process

    def cgroup(self, name: str) -> str:
        """A cgroup v2 for programs of this lab; its path below the mount. OSError when we may make none."""
        parent = self.directory.name
        path = f"{parent}/{name}"
        create_cgroup(path)
        self.cgroups += [path] if parent in self.cgroups else [parent, path]
        return path

    async def close(self) -> None:
        """End all processes at once, then remove the rest. Runs to its end when cancelled."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                for process in reversed(self.processes):
                    nursery.start_soon(process.end)
            self.remove()

    def remove(self) -> None:
        """Remove what is no process."""
        for cgroup in reversed(self.cgroups):
            remove_cgroup(cgroup)
        for namespace in reversed(self.topology.namespaces):
            namespace.remove()
        shutil.rmtree(self.directory, ignore_errors=True)


@asynccontextmanager
async def open_lab() -> AsyncIterator[Lab]:
    """A lab for the time of the block."""
    lab = make_lab()
    try:
        yield lab
    finally:
        await lab.close()


def make_lab() -> Lab:
    """An empty lab with its wire: in the world we are in, or, outside one, under names unique to this process.

    The caller awaits `close`, in whatever event loop it has then.
    """
    inside = world.owner()
    if inside is None:
        remove_orphans()
    directory = _directory("/run" if inside else tempfile.gettempdir(), inside or os.getpid())
    lab = Lab(directory, Topology("" if inside else f"{directory.name}-"))
    try:
        lab.topology.build()
    except BaseException:
        lab.remove()
        raise
    return lab


def _directory(parent: str, owner: int) -> Path:
    """A new directory; its name is one that no lab of ours has had."""
    while True:
        directory = Path(parent, orphans.name(owner, next(_counter)))
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o755)
            directory.chmod(0o755)  # whatever our umask: programs under other uids look in here
            return directory
