"""Ports of workloads that nobody declared: those at which they listen, as the kernel has them (sock_diag).

No event tells of a new listener, so the kernel is asked every LOOK seconds, and only while somebody's ports are wanted:
one listing of listening sockets for the machine, and one for each network namespace.

A port counts at once and goes only when nobody has listened there for a while. A service that restarts would otherwise
leave the mesh for that moment, and whoever calls it then would do so in clear.
"""

import ipaddress
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import structlog
import trio

from agent.discovery.found import Found
from ca.resources.metadata import Key
from ca.resources.workload import Match
from redirect.cgroup import mount_point
from redirect.diag import LISTEN, Sock, Sockets
from redirect.namespace import NamespaceError, namespace_path

log: structlog.stdlib.BoundLogger = structlog.get_logger()

LOOK = 0.5
"""Seconds between looks."""
MOST = 64
"""Ports of one workload, the lowest: one that opens ports without end must not fill the mesh."""
_SUBTREE = 1000
"""Cgroups below a workload's own that are looked into."""

HOST = ""


@dataclass
class Listening:
    """Follows those given to `want`; `changed` is called when `ports` of one of them may have. `never` are ports that
    are nobody's, `linger` in seconds."""

    changed: Callable[[], None]
    never: frozenset[int]
    linger: float
    problems: tuple[str, ...] = ()
    _wanted: dict[Key, Match] = field(default_factory=dict)
    _last: dict[Key, dict[int, float]] = field(default_factory=dict)
    """When somebody was last seen to listen, by port."""
    _seeded: dict[Key, dict[int, float]] = field(default_factory=dict)
    """What `_last` begins with at the first look."""
    _due: trio.Event = field(default_factory=trio.Event)

    def want(self, found: Iterable[Found], before: Callable[[Key], tuple[int, ...]]) -> None:
        """Follow these and no others. `before` has the ports that are in the mesh already: they stay for as long as
        any that nobody listens at any more, also when it was a former life of ours that saw them."""
        wanted = {f.key: f.match for f in found if f.ports is None}
        if wanted == self._wanted:
            return
        now = trio.current_time()
        for key, match in wanted.items():
            if self._wanted.get(key) != match:
                self._last.pop(key, None)
                self._seeded[key] = dict.fromkeys(before(key), now)
        for gone in self._wanted.keys() - wanted.keys():
            self._last.pop(gone, None)
        self._wanted = wanted
        self._due.set()

    def ports(self, key: Key) -> tuple[int, ...] | None:
        """In order; None before the first look."""
        last = self._last.get(key)
        return None if last is None else tuple(sorted(last)[:MOST])

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if not self._wanted:
                await self._due.wait()
            self._due = trio.Event()
            wanted = dict(self._wanted)
            self._note(wanted, await trio.to_thread.run_sync(listened, wanted))
            with trio.move_on_after(LOOK):
                await self._due.wait()

    def _note(self, wanted: Mapping[Key, Match], heard: Mapping[Key, frozenset[int]]) -> None:
        now = trio.current_time()
        changed = False
        for key, match in wanted.items():
            if self._wanted.get(key) != match:
                continue
            before = self.ports(key)
            last = self._last.setdefault(key, self._seeded.pop(key, {}))
            last.update(dict.fromkeys(heard.get(key, frozenset()) - self.never, now))
            for port in [p for p, when in last.items() if now - when > self.linger]:
                del last[port]
            changed |= before != self.ports(key)
        problems = tuple(
            f"{k}: listens at {len(p)} ports, of which only the {MOST} lowest count; declare them"
            for k, p in self._last.items()
            if len(p) > MOST
        )
        changed |= problems != self.problems
        self.problems = problems
        if changed:
            self.changed()


def listened(wanted: Mapping[Key, Match]) -> dict[Key, frozenset[int]]:
    """The ports at which each listens for others than the machine itself. Whoever's place cannot be entered listens
    nowhere. Blocking."""
    heard: dict[Key, frozenset[int]] = {}
    places: dict[str, list[Key]] = {}
    for key, match in wanted.items():
        places.setdefault(namespace_path(match.netns) if match.netns is not None else HOST, []).append(key)
    for place, keys in places.items():
        try:
            with Sockets(place or None) as sockets:
                rows = [s for s in sockets.listed(1 << LISTEN) if not ipaddress.ip_address(s.local[0]).is_loopback]
        except (OSError, NamespaceError) as error:
            log.debug("not-listened", place=place, error=str(error))
            continue
        for key in keys:
            heard[key] = frozenset(_ports(wanted[key], rows))
    return heard


def _ports(match: Match, rows: Iterable[Sock]) -> Iterator[int]:
    cgroups = frozenset(_subtree(match.cgroup)) if match.cgroup is not None else frozenset()
    for sock in rows:
        if (
            match.netns is not None
            or (match.uid is not None and sock.uid == match.uid)
            or sock.cgroup in cgroups
            or sock.local[0] == match.address
        ):
            yield sock.local[1]


def _subtree(path: str) -> Iterator[int]:
    """The ids of a cgroup and of those below it; none if it is not there."""
    root = mount_point()
    if root is None:
        return
    top = os.path.join(root, path.removeprefix(root).strip("/"))
    for _, (folder, _folders, _files) in zip(range(_SUBTREE), os.walk(top), strict=False):
        try:
            yield os.stat(folder).st_ino
        except FileNotFoundError:
            continue
