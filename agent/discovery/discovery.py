"""Discovery on a node: runs the sources, merges what they see and has it registered."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial

import structlog
import trio

from agent.answers import DiscoveredAnswer, DiscoveredRow
from agent.discovery.found import SOURCES, Found, Seen, Source
from agent.discovery.listening import Listening
from agent.discovery.merge import Merged, merge
from agent.discovery.registration import Registrar, Registration
from agent.snapshot import Snapshot
from ca.resources.metadata import Key
from ca.resources.workload import Workload

log: structlog.stdlib.BoundLogger = structlog.get_logger()

FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0
"""Seconds until a source that failed is run again: doubling."""


class Discovery:
    """`sources` are those that the settings want; the others count as seeing nothing. `changed` is called when
    `problems` may have changed. Ports that nobody declares are looked up: none of `never`, and each stays for
    `linger` seconds after its last listener."""

    def __init__(
        self,
        node: str,
        sources: Iterable[Source],
        client: Callable[[], Registrar],
        changed: Callable[[], None],
        never: frozenset[int] = frozenset(),
        linger: float = 60.0,
    ) -> None:
        self._node = node
        self._sources = tuple(sources)
        self._changed = changed
        self._seen: dict[str, Seen] = {name: Seen() for name in SOURCES if name not in {s.name for s in self._sources}}
        self._failed: dict[str, str] = {}
        self._merged = Merged({})
        self._snapshot: Snapshot | None = None
        self._told: dict[Key, Workload] = {}
        self._listening = Listening(self._report, never, linger)
        self.registration = Registration(client, changed)

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep, "registration", self.registration.run)
            nursery.start_soon(self._keep, "ports", self._listening.run)
            for source in self._sources:
                nursery.start_soon(self._keep, source.name, partial(source.run, partial(self._take, source.name)))
            self._report()

    def look(self, snapshot: Snapshot) -> None:
        """The mesh as it is now."""
        self._snapshot = snapshot
        self.registration.look(snapshot)

    @property
    def problems(self) -> tuple[str, ...]:
        """A sentence for everything that could not be taken, or was not registered."""
        return (*self._local(), *self._refusals())

    def _local(self) -> Iterator[str]:
        yield from self._failed.values()
        for seen in self._seen.values():
            yield from seen.problems
        yield from self._merged.conflicts
        yield from self._listening.problems

    def _refusals(self) -> Iterator[str]:
        # Nothing found, nothing to worry about: a node without a right to register is as it should be.
        if self._merged.found and self.registration.problem:
            yield self.registration.problem
        answered = self.registration.answered
        for key, why in (answered.refused if answered else {}).items():
            yield f"workload {key.namespace}/{key.name} is not registered: {why}"

    def answer(self, recognised: Callable[[Found], str]) -> DiscoveredAnswer:
        """Everything found, and what became of it."""
        answered = self.registration.answered
        rows = []
        for key, found in sorted(self._merged.found.items()):
            wanted = self._wanted(found)
            stands = answered is not None and wanted is not None and answered.workloads.get(key) == wanted
            why = answered.refused.get(key, "") if answered and stands else ""
            state = ("refused" if why else "registered") if stands else "waiting"
            rows.append(
                DiscoveredRow(
                    found.source,
                    found.place,
                    found.title,
                    found.service_account,
                    recognised(found),
                    list(wanted.spec.ports) if wanted else [],
                    found.ports is not None,
                    state,
                    why,
                )
            )
        return DiscoveredAnswer(rows, [s.name for s in self._sources], [*self._local()])

    async def _keep(self, what: str, run: Callable[[], Awaitable[None]]) -> None:
        """Run a task for good, whatever it does: the agent has more to do than to discover."""
        pause = FIRST_PAUSE
        while True:
            started = trio.current_time()
            try:
                await run()
                why = "it ended by itself"
            except Exception as error:
                log.exception("discovery-failed", what=what)
                why = f"{type(error).__name__}: {error}"
            if trio.current_time() - started > LAST_PAUSE:
                pause = FIRST_PAUSE
            self._failed[what] = f"discovery of {what} failed and is started again: {why}"[:500]
            self._changed()
            await trio.sleep(pause)
            pause = min(pause * 2, LAST_PAUSE)
            if what not in SOURCES:  # those say themselves when they are well again
                del self._failed[what]

    def _take(self, source: str, seen: Seen) -> None:
        self._failed.pop(source, None)
        before = self._seen.get(source)
        if seen == before:
            return
        for problem in seen.problems:
            if before is None or problem not in before.problems:
                log.warning("not-found", source=source, problem=problem)
        self._seen[source] = seen
        self._report()

    def _report(self) -> None:
        before, self._merged = self._merged, merge(self._seen)
        for conflict in self._merged.conflicts:
            if conflict not in before.conflicts:
                log.warning("found-twice", problem=conflict)
        self._listening.want(self._merged.found.values(), self._in_mesh)
        workloads: dict[Key, Workload] = {}
        whole = self._merged.whole
        for key, found in self._merged.found.items():
            if wanted := self._wanted(found) or self._told.get(key):
                workloads[key] = wanted
            else:
                whole -= {found.source}
        self._told = workloads
        self.registration.want(workloads, whole)
        self._changed()

    def _wanted(self, found: Found) -> Workload | None:
        """What is to be registered; None until its ports are known."""
        ports = found.ports if found.ports is not None else self._listening.ports(found.key)
        return None if ports is None else found.workload(self._node, ports)

    def _in_mesh(self, key: Key) -> tuple[int, ...]:
        workload = self._snapshot.workloads.get(key) if self._snapshot else None
        return workload.spec.ports if workload and workload.spec.node == self._node else ()
