"""Workloads that are systemd units: those with a section `[X-Culvert]` in their file or a drop-in (see `sections`).

Which files make up a unit, and where its cgroup is, systemd knows best, so it is asked; but only about units that some
file with the section may belong to. A unit need not run: its cgroup is known from its slice, so that it is captured
from its first packet on. What changes in files is seen at once (inotify), and again when systemd has reloaded them;
instances of a template, which exist only once they are started, when systemd announces them.
"""

import contextlib
import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from agent.discovery.dbus import MANAGER, SOCKET, Bus, BusError, systemd
from agent.discovery.folders import Folders, TooMuch, entries, read_small
from agent.discovery.found import Found, Publish, Seen
from agent.discovery.sections import has_section, marked, slice_path, unit_workload

log: structlog.stdlib.BoundLogger = structlog.get_logger()

AGAIN = 1.0
"""Seconds between tries to reach systemd."""
MOST_FILES, MOST_BYTES, MOST_UNITS = 20_000, 2**18, 2000
_KINDS = {".service": "Service", ".slice": "Slice", ".scope": "Scope"}
"""Units that have a cgroup with processes, and the D-Bus interface that tells where."""


@dataclass
class Units:
    """The source; `node` is the name of this node."""

    node: str
    socket: str = SOCKET
    name: str = "systemd"
    _last: Seen = field(default_factory=Seen)

    async def run(self, publish: Publish) -> None:
        """Until cancelled. A machine without systemd has no units; while systemd cannot be asked, all stays as it was
        last seen."""
        away = False
        while True:
            try:
                async with systemd(self.socket) as bus:
                    away = False
                    await self._follow(bus, publish)
            except BusError as error:
                if not await trio.Path(self.socket).exists() and not self._last.found:
                    publish(Seen())
                elif not away:
                    log.warning("systemd-away", why=str(error))
                    publish(Seen(self._last.found, (f"systemd: {error}",), whole=False))
                away = True
            await trio.sleep(AGAIN)

    async def _follow(self, bus: Bus, publish: Publish) -> None:
        with Folders() as folders:
            while True:
                manager = await bus.properties(MANAGER.object_path, "Manager")
                paths = [Path(p) for p in manager["UnitPath"]]
                folders.watch(paths)
                names, problems, drop_ins = await trio.to_thread.run_sync(candidates, paths)
                folders.watch(drop_ins)
                self._last = await self._look(bus, names, problems)
                publish(self._last)
                await _news(bus, folders, [n for n in names if "*" in n])

    async def _look(self, bus: Bus, names: Iterable[str], problems: Iterable[str]) -> Seen:
        found: dict[str, Found] = {}
        told = list(problems)
        for unit, path in (await _units(bus, names)).items():
            try:
                if (new := await self._unit(bus, unit, path)) is not None:
                    found[new.place] = new
            except (ValueError, OSError, TooMuch) as error:
                why = (error.strerror if isinstance(error, OSError) else "") or error
                told.append(f"unit {unit}: {why}")
            except BusError as error:
                if error.gone:
                    raise
                told.append(f"unit {unit}: {error}")
        return Seen(tuple(found[n] for n in sorted(found)), tuple(told))

    async def _unit(self, bus: Bus, unit: str, path: str) -> Found | None:
        facts = await bus.properties(path, "Unit")
        if facts["LoadState"] != "loaded":
            return None
        unit = facts["Id"]
        kind = _KINDS.get(Path(unit).suffix)
        files = [f for f in (facts["FragmentPath"], *facts["DropInPaths"]) if f]
        if kind is None or not files:
            return None
        marks = marked(await trio.to_thread.run_sync(lambda: list(_texts(files))))
        if marks is None:
            return None
        place = await bus.properties(path, kind)
        return unit_workload(unit, marks, place["ControlGroup"].strip("/") or _cgroup(unit, place["Slice"]), self.node)


async def _units(bus: Bus, names: Iterable[str]) -> dict[str, str]:
    """Units and their objects: those named, whether they run or not, and of patterns those that systemd has now."""
    units: dict[str, str] = {}
    names = list(names)
    patterns = [n for n in names if "*" in n]
    if patterns:
        (rows,) = await bus.call(MANAGER, "ListUnitsByPatterns", "asas", [], patterns)
        units |= {row[0]: row[6] for row in rows[:MOST_UNITS]}
    for name in names:
        if "*" not in name and name not in units:
            with contextlib.suppress(BusError):
                (units[name],) = await bus.call(MANAGER, "LoadUnit", "s", name)
    return units


async def _news(bus: Bus, folders: Folders, patterns: list[str]) -> None:
    """Returns when files changed, systemd has read them again, or a unit that one of the patterns means came or went.

    Others are no news: to look at a unit that does not run makes systemd load it for a moment, and say so.
    """
    gone: list[BusError] = []
    async with trio.open_nursery() as nursery:

        async def files() -> None:
            await folders.news()
            nursery.cancel_scope.cancel()

        nursery.start_soon(files)
        try:
            while True:
                match await bus.signal():
                    case "Reloading", (False,):
                        break
                    case "UnitNew" | "UnitRemoved", (str(name), *_) if any(fnmatch.fnmatch(name, p) for p in patterns):
                        break
        except BusError as error:
            gone.append(error)
        nursery.cancel_scope.cancel()
    if gone:
        raise gone[0]


def candidates(paths: Iterable[Path]) -> tuple[list[str], list[str], list[Path]]:
    """In the directories of unit files: names (or patterns) of the units to which a file with the section may belong, a
    sentence for each file that could not be read, and the directories of drop-ins there are. Blocking."""
    names: dict[str, None] = {}
    problems: list[str] = []
    drop_ins: list[Path] = []
    for folder in paths:
        try:
            for path in entries(folder, MOST_FILES):
                if path.suffix == ".d" and path.is_dir():
                    drop_ins.append(path)
                    if any(_says(p, problems) for p in entries(path, MOST_FILES) if p.suffix == ".conf"):
                        names[_pattern(path.name.removesuffix(".d"))] = None
                elif path.suffix in _KINDS and _says(path, problems):
                    names[_pattern(path.name)] = None
        except (OSError, TooMuch) as error:
            problems.append(f"{folder}: {(error.strerror if isinstance(error, OSError) else '') or error}")
    return list(names)[:MOST_UNITS], problems, drop_ins


def _pattern(unit: str) -> str:
    """What a file of that name is about: one unit, or all of a template (a@.service), prefix (a-.service) or kind."""
    if f".{unit}" in _KINDS:
        return f"*.{unit}"
    return re.sub(r"([@-])(\.[a-z]+)$", r"\1*\2", unit)


def _says(path: Path, problems: list[str]) -> bool:
    try:
        return has_section(read_small(path, MOST_BYTES))
    except FileNotFoundError:
        return False
    except (OSError, TooMuch, UnicodeDecodeError) as error:
        # Masked units are links to /dev/null, which is no plain file; nobody else's are our business either.
        if not isinstance(error, TooMuch | UnicodeDecodeError):
            problems.append(f"{path}: cannot be read: {error.strerror}")
        return False


def _texts(files: Iterable[str]) -> Iterator[str]:
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            yield read_small(Path(file), MOST_BYTES)


def _cgroup(unit: str, inside: str) -> str:
    """Where a unit will be once it runs."""
    if unit.endswith(".slice"):
        return slice_path(unit)
    return "/".join(p for p in (slice_path(inside), unit) if p)
