"""Workloads that are containers with labels culvert.io/... (Docker and Podman).

    culvert.io/labels            app=web mesh=on
    culvert.io/service-account   the container's name, if left out
    culvert.io/ports             those at which it listens, if left out
    culvert.io/namespace         default
    culvert.io/name              the container's name and the node's
    culvert.io/address           the one the engine gave it
    culvert.io/fail-mode         closed

A container with a network namespace of its own is recognised by that; one in the machine's by its cgroup. What is
registered is a link of ours to the namespace, so that a container that starts anew, under another process id, is the
same to the centre, which need not be asked.
"""

import errno
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import structlog
import trio

from agent.discovery.docker import PREFIX, Container, Engine, EngineError
from agent.discovery.found import Found, Publish, Seen, failing
from agent.discovery.sections import NAMESPACE, named, numbers, pairs, spelled
from agent.discovery.tenants import Station, Tenants
from ca.hints import did_you_mean
from ca.resources.workload import Match

log: structlog.stdlib.BoundLogger = structlog.get_logger()

AGAIN = 0.5
"""Seconds between tries to reach an engine."""
SETTLE = 0.05
"""Seconds from an event to the look: starting a container makes several."""
ABSENT = 10.0
"""Seconds without the engine's socket, from our start on, after which there is taken to be no engine."""
LINGER = 10.0
"""Seconds for which a container that has ended stands as it was, because it may be restarting. After that it stands for
as long as it exists, and serves nothing."""

_KEYS = ("labels", "service-account", "ports", "namespace", "name", "address", "fail-mode")
_QUIET = ("", "exec_create", "exec_start", "exec_die", "health_status", "top", "attach", "resize", "exec_detach")
"""Events that change nothing for us."""


@dataclass(frozen=True, slots=True)
class Running:
    """A container as a workload, and the process by which it is found in /proc."""

    found: Found
    pid: int
    started: str
    """When that process began: the same id later is another process."""
    space: int = 0
    """The number of its network namespace, and in `netns` the file that its link should lead to; 0 and empty in the
    machine's own, and of a container that has ended."""
    netns: str = ""
    stations: frozenset[Station] = frozenset()
    """From where it sends, in a namespace of its own."""
    id: str = ""
    serves: frozenset[int] = frozenset()
    """The ports that are written on it, also while it does not run."""


@dataclass
class Containers:
    """The source, over any number of engines. `links` is the directory for links to namespaces; `relinked` is called
    when one of them leads elsewhere, `met` with who lives behind bridges now, each time after it was looked up."""

    node: str
    sockets: tuple[Path, ...]
    links: Path
    relinked: Callable[[], None]
    met: Callable[[Tenants], None]
    name: str = "containers"
    _seen: dict[Path, Seen] = field(default_factory=dict)
    _running: dict[Path, tuple[Running, ...]] = field(default_factory=dict)
    _others: dict[Path, frozenset[Station]] = field(default_factory=dict)

    async def run(self, publish: Publish) -> None:
        """Until cancelled. While an engine cannot be asked, what it last said stands, as far as it still lives."""
        async with trio.open_nursery() as nursery:
            for socket in self.sockets:
                nursery.start_soon(self._follow, Engine(socket), publish)

    async def _follow(self, engine: Engine, publish: Publish) -> None:
        last: dict[str, tuple[float, Running]] = {}
        started, why = trio.current_time(), ""
        while True:
            try:
                # First listen, then look: what happens in between is told.
                async with engine.events() as events:
                    why = ""
                    await self._look(engine, last, publish)
                    while True:
                        # Nothing tells that a container which ended is not coming back.
                        now = trio.current_time()
                        ended = any(not r.pid and now - when <= LINGER for when, r in last.values())
                        with trio.move_on_after(LINGER / 4 if ended else math.inf):
                            while (await events.happened()).partition(":")[0] in _QUIET:
                                pass
                        with trio.move_on_after(SETTLE):  # what comes meanwhile is seen by the same look
                            while True:
                                await events.happened()
                        await self._look(engine, last, publish)
            except EngineError as error:
                absent = error.absent and trio.current_time() > started + ABSENT
                if str(error) != why:
                    why = str(error)
                    log.log(20 if error.absent else 30, "engine-away", why=why)
                for key in [k for k, (_, r) in last.items() if not alive(r)]:
                    del last[key]
                stands = tuple(r for _, r in last.values())
                problems = () if error.absent else (f"containers: {why}",)
                await self._publish(engine, stands, problems, not stands and absent, publish)
            await trio.sleep(AGAIN)

    async def _look(self, engine: Engine, last: dict[str, tuple[float, Running]], publish: Publish) -> None:
        now = trio.current_time()
        problems = []
        spaces: dict[int, str] = {}
        containers = await engine.containers()
        self._others[engine.socket] = containers.others
        for container in containers.running:
            try:
                running = await trio.to_thread.run_sync(described, container, self.node, self.links)
                other = spaces.setdefault(running.space or -running.pid, running.found.place)
                if other != running.found.place:
                    raise ValueError(f"it shares its network namespace with {other}, which is a workload already")
                last[running.found.title] = now, running
            except (ValueError, OSError) as error:
                why = (error.strerror if isinstance(error, OSError) else "") or error
                problems.append(f"container {container.name.strip('/')[:100]}: {why}")
        for key, (when, running) in list(last.items()):
            gone = now - when > LINGER
            if gone and (running.id not in containers.resting or not running.found.match.netns):
                del last[key]
            elif when < now:
                # Its process id is nobody's now, and may be anybody's next; so may its address, after a while.
                found = replace(running.found, ports=(), address="") if gone else running.found
                last[key] = when, replace(running, found=found, pid=0, space=0, netns="", stations=frozenset())
        await self._publish(engine, tuple(r for _, r in last.values()), problems, True, publish)

    async def _publish(
        self, engine: Engine, running: tuple[Running, ...], problems: Iterable[str], whole: bool, publish: Publish
    ) -> None:
        self._running[engine.socket] = running
        links: dict[str, str] = {}
        for socket in self.sockets:  # of two of the same name the first counts, here as everywhere
            for one in self._running.get(socket, ()):
                if one.netns:
                    links.setdefault(one.found.match.netns or "", one.netns)
        try:
            if await trio.to_thread.run_sync(relink, self.links, links):
                self.relinked()
        except OSError as error:
            problems = [*problems, f"{self.links}: links to network namespaces cannot be made: {error.strerror}"]
        # After the links: whoever is met behind one has the namespace that it leads to.
        self.met(self._tenants())
        self._seen[engine.socket] = Seen(tuple(r.found for r in running), tuple(problems), whole)
        if self._seen.keys() >= set(self.sockets):
            parts = [self._seen[socket] for socket in self.sockets]
            publish(
                Seen(
                    tuple(sorted((f for s in parts for f in s.found), key=lambda f: f.title)),
                    tuple(p for s in parts for p in s.problems),
                    all(s.whole for s in parts),
                )
            )

    def _tenants(self) -> Tenants:
        places: dict[str, frozenset[Station]] = {}
        for running in self._running.values():
            for one in running:
                if one.stations and one.found.match.netns:
                    places[one.found.match.netns] = places.get(one.found.match.netns, frozenset()) | one.stations
        every = [one.found.match.netns for running in self._running.values() for one in running if not one.pid]
        resting = frozenset(place for place in every if place) - places.keys()
        serves = {
            one.found.match.netns: one.serves
            for running in self._running.values()
            for one in running
            if one.found.match.netns and one.serves
        }
        return Tenants(places, frozenset().union(*self._others.values()), resting, serves)


def described(container: Container, node: str, links: Path) -> Running:
    """The workload that a container is. ValueError for labels that make no sense, OSError when it is gone already."""
    labels = container.config.labels or {}
    mine = {k.removeprefix(PREFIX): v for k, v in labels.items() if k.startswith(PREFIX)}
    for key in mine:
        if key not in _KEYS:
            raise ValueError(f"label {PREFIX}{key}: there is no such label{did_you_mean(key, _KEYS)}")
    title = container.name.strip("/")
    pid = container.state.pid
    own = _same(f"/proc/{pid}/ns/net", "/proc/self/ns/net")
    namespace = mine.get("namespace") or NAMESPACE
    name = mine.get("name") or named(title, node)
    if own:
        match, netns, address = Match(cgroup=_cgroup(pid)), "", ""
    else:
        match, netns = Match(netns=str(links / f"{spelled(namespace)}.{spelled(name)}")), _namespace(container)
        address = mine.get("address") or _address(container)
    ports = tuple(dict.fromkeys(numbers(mine["ports"]))) if mine.get("ports") else None
    if netns and not address:
        if ports:
            raise ValueError(f"it has ports, and no address at which others reach it: label {PREFIX}address gives one")
        ports = ()
    account = mine.get("service-account") or spelled(title)
    found = Found(
        "containers",
        title,
        namespace,
        name,
        account,
        match,
        ports,
        pairs(mine["labels"]) if mine.get("labels") else {},
        address,
        failing(mine.get("fail-mode", ""), node, account),
    )
    space, stations = (0, frozenset[Station]()) if own else (os.stat(netns).st_ino, container.network_settings.stations)
    # Last: whoever got the id of a container's process after the engine had named it began later than that.
    began = _began(pid)
    if int(began) / os.sysconf("SC_CLK_TCK") > container.heard:
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
    return Running(found, pid, began, space, netns, stations, container.id, frozenset(ports or ()))


def alive(running: Running) -> bool:
    """Whether the container's process is still the one that it was."""
    try:
        return running.pid > 0 and _began(running.pid) == running.started
    except OSError:
        return False


def relink(folder: Path, links: Mapping[str, str]) -> bool:
    """Make exactly these links (path -> target) in the directory; whether anything had to be done. OSError."""
    if not links and not folder.exists():
        return False
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    changed = False
    for path in list(folder.iterdir()):
        if str(path) not in links:
            path.unlink()
            changed = True
    for link, target in links.items():
        if not (os.path.islink(link) and os.readlink(link) == target):
            new = f"{link}.new"
            if os.path.lexists(new):
                os.unlink(new)
            os.symlink(target, new)
            os.replace(new, link)
            changed = True
    return changed


def _namespace(container: Container) -> str:
    """The file of its namespace: the engine's own, which no other process can take over by getting its id, if it has
    one that leads there."""
    by_process = f"/proc/{container.state.pid}/ns/net"
    kept = container.network_settings.sandbox_key
    try:
        return kept if kept and _same(kept, by_process) else by_process
    except FileNotFoundError:
        return by_process


def _same(one: str, other: str) -> bool:
    a, b = os.stat(one), os.stat(other)
    return (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)


def _address(container: Container) -> str:
    networks = (container.network_settings.networks or {}).values()
    return next((a for n in networks for a in (n.address, n.address6) if a), "")


def _began(pid: int) -> str:
    """In ticks since boot. OSError when there is no such process."""
    with open(f"/proc/{pid}/stat") as stat:
        return stat.read().rpartition(")")[2].split()[19]


def _cgroup(pid: int) -> str:
    """The cgroup (v2) of a process. ValueError where it has none of its own."""
    with open(f"/proc/{pid}/cgroup") as lines:
        path = next((line[3:].strip() for line in lines if line.startswith("0::")), "")
    if not path.strip("/"):
        raise ValueError("it is in the machine's network and in no cgroup (v2) of its own: it cannot be recognised")
    return path
