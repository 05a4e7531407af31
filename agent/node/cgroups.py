"""Cgroups of workloads, followed through the restarts of their units.

A rule pins a cgroup's id, and a unit that restarts gets a new one. inotify tells within a millisecond that a directory
came or went; who does not believe it may look again at any time. All ancestors are watched, because they come and go as
well. What a new cgroup sends before the rules have followed goes to the resolver, so that nothing depends on who is
faster: the rules name those beside workloads' that are nobody's (`Cgroups.parents`).
"""

import contextlib
import ctypes
import os
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

import structlog
import trio

from redirect.cgroup import children, locate, mount_point, relative
from redirect.desired import Parent

log: structlog.stdlib.BoundLogger = structlog.get_logger()

Located = dict[str, tuple[int, int] | None]
"""(level, id) by path; None for a cgroup that is not there now."""

_CREATE, _DELETE, _ONLY_DIRECTORIES = 0x100, 0x200, 0x01000000
_EVENTS = 64 * 1024


class Cgroups:
    """Follows the paths it was asked to locate. Whoever makes it closes it."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.root = mount_point() or ""
        """Where cgroups are mounted."""
        self._fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            # Others may have taken all that there are (fs.inotify.max_user_instances): then looking must do.
            log.warning("cgroups-not-watched", error=os.strerror(ctypes.get_errno()))

    def close(self) -> None:
        """Stop watching."""
        if self._fd >= 0:
            os.close(self._fd)

    def locate(self, paths: Iterable[str]) -> tuple[Located, list[str]]:
        """Where these are, and a sentence for each path that names none, or one that another path names before it; from
        now on changes of them are news. Blocking, for some microseconds a path."""
        found: Located = {}
        strange = []
        names: dict[str, str] = {}
        self.root = mount_point() or ""
        for path in paths:
            # First watch, then look: what changes in between is news.
            if self.root:
                self._watch(self.root, path)
            try:
                first = names.setdefault(relative(path, self.root), path)
                found[path] = locate(path, self.root) if self.root and first == path else None
                if first != path:
                    strange.append(f"cgroup {path}: it is the same as {first}, whose workload goes first")
            except ValueError as error:
                found[path] = None
                strange.append(f"cgroup {path}: {error}")
        return found, strange

    def parents(self, located: Mapping[str, tuple[int, int] | None]) -> tuple[Parent, ...]:
        """Every cgroup above those located, with its children that are not among them. A child that is one of them has
        a rule of its own or none yet: then it must not be taken for nobody's. To be asked after `locate`, which makes
        what changes from then on news. Blocking, for some microseconds a child."""
        if not self.root:
            return ()
        ours = {relative(path, self.root) for path in located if ".." not in path}
        above = {str(p) if p.parts else "" for path in ours if path for p in PurePosixPath(path).parents}
        found = []
        for path in sorted(above):
            if (listed := children(path, self.root)) is not None:
                number, inside = listed
                nobodys = frozenset(i for name, i in inside.items() if os.path.join(path, name) not in ours)
                found.append(Parent(len(PurePosixPath(path).parts), number, nobodys))
        return tuple(found)

    async def news(self) -> None:
        """Returns when a directory came or went beside one of those followed."""
        if self._fd < 0:
            await trio.sleep_forever()
        await trio.lowlevel.wait_readable(self._fd)
        with contextlib.suppress(BlockingIOError):
            os.read(self._fd, _EVENTS)

    def _watch(self, root: str, path: str) -> None:
        inside = PurePosixPath(path.removeprefix(root).lstrip("/"))
        for ancestor in inside.parents:
            # One that is not there will be seen to come from the one above it; watching twice is once.
            folder = os.path.join(root, ancestor)
            self._libc.inotify_add_watch(self._fd, os.fsencode(folder), _CREATE | _DELETE | _ONLY_DIRECTORIES)
