"""What the node found, registered at the centre, and kept so whatever changes on either side.

A report says everything. It is made again when what was found changed, when a session with the centre begins, and when
the mesh shows that something stands otherwise than it was answered: a workload taken over or deleted, a right given
or taken. Between two reports there is a pause, after one that failed a longer one: 1 s, doubling to 30 s.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import structlog
import trio

from agent.snapshot import Snapshot
from ca.client import ClientError
from ca.contract import FoundRequest, FoundResponse, ResourceName
from ca.resources.kinds import encode
from ca.resources.metadata import Key
from ca.resources.node import Discovery
from ca.resources.workload import Workload

log: structlog.stdlib.BoundLogger = structlog.get_logger()

GATHER = 0.05
"""Seconds between something changing and the report, and so between two reports: changes come in flocks."""
AGAIN = 15.0
"""Seconds until what was refused is reported again: who stood in the way may be gone without our seeing it."""
FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0


@dataclass(frozen=True, slots=True)
class Answered:
    """What the centre last said: of which report, at which revision, and why it refused whom. `before` and `rights` are
    what the mesh looked like from here when it was asked: what is otherwise since is news."""

    workloads: Mapping[Key, Workload]
    revision: int
    refused: Mapping[Key, str]
    before: Mapping[Key, Workload]
    rights: Discovery | None


class Registrar(Protocol):
    """The centre as far as it is asked here; ClientError when it does not answer."""

    async def found(self, request: FoundRequest) -> FoundResponse: ...


class Registration:
    """`client` gives one with the node's present certificate; `changed` is called when `answered` or `problem` has
    changed."""

    def __init__(self, client: Callable[[], Registrar], changed: Callable[[], None]) -> None:
        self.answered: Answered | None = None
        self.problem = ""
        self._client, self._changed = client, changed
        self._workloads: Mapping[Key, Workload] = {}
        self._sources: frozenset[str] = frozenset()
        self._snapshot: Snapshot | None = None
        self._due = trio.Event()
        self._asking = False
        self._told: set[Key] = set()
        """What the centre may have heard of from us in this life; what of it is not there any more is gone for sure."""

    def want(self, workloads: Mapping[Key, Workload], sources: frozenset[str]) -> None:
        """These are to be registered; of `sources` they are all. Before the first call nothing is reported."""
        if (workloads, sources) != (self._workloads, self._sources):
            self._workloads, self._sources = workloads, sources
            self._due.set()

    def met(self) -> None:
        """A session with the centre has begun: what it was told before it may have forgotten."""
        if self._sources:
            self._due.set()

    def look(self, snapshot: Snapshot) -> None:
        """The mesh as it is now."""
        self._snapshot = snapshot
        answered = self.answered
        # While a report is under way, the answer is waited for: it may say what there is to see.
        if (
            answered
            and not self._asking
            and snapshot.revision >= answered.revision
            and self._otherwise(answered, snapshot)
        ):
            self._due.set()

    def _otherwise(self, answered: Answered, snapshot: Snapshot) -> bool:
        """Whether something stands otherwise than when the centre answered."""
        for key, wanted in answered.workloads.items():
            stands = snapshot.workloads.get(key)
            if key in answered.refused:
                if stands != answered.before.get(key):
                    return True
            elif stands is None or _said(stands) != _said(wanted):
                return True
        return _rights(snapshot) != answered.rights

    async def run(self) -> None:
        """Until cancelled."""
        pause = 0.0
        while True:
            refused = self.answered is not None and self.answered.refused
            with trio.move_on_after(AGAIN if refused else math.inf):
                await self._due.wait()
            await trio.sleep(GATHER)
            self._due = trio.Event()
            if await self._report():
                pause = 0.0
                continue
            pause = min(max(pause * 2, FIRST_PAUSE), LAST_PAUSE)
            with trio.move_on_after(pause):
                await self._due.wait()
            self._due.set()

    async def _report(self) -> bool:
        workloads, sources, snapshot = self._workloads, self._sources, self._snapshot
        before = {k: w for k in workloads if snapshot and (w := snapshot.workloads.get(k))}
        rights = _rights(snapshot) if snapshot else None
        gone = [ResourceName(k.kind, k.name, k.namespace) for k in sorted(self._told - workloads.keys())]
        self._told |= workloads.keys()
        request = FoundRequest([msgspec.Raw(encode(w)) for w in workloads.values()], sorted(sources), gone)
        self._asking = True
        try:
            response = await self._client().found(request)
        except ClientError as error:
            self._tell(self.answered, f"what was found here is not registered yet: {error}")
            return False
        finally:
            self._asking = False
        self._told = set(workloads)
        refused = {Key("Workload", r.namespace, r.name): r.why for r in response.refused}
        self._tell(Answered(workloads, response.revision, refused, before, rights), "")
        if self._snapshot:
            self.look(self._snapshot)
        return True

    def _tell(self, answered: Answered | None, problem: str) -> None:
        before = self.answered.refused if self.answered else {}
        now = answered.refused if answered else {}
        for key, why in now.items():
            if before.get(key) != why:
                log.warning("not-registered", workload=f"{key.namespace}/{key.name}", why=why)
        if problem and problem != self.problem:
            log.warning("not-reported", why=problem)
        was = self.answered.workloads if self.answered else None
        if answered and (was, before) != (answered.workloads, now):
            log.info("registered", workloads=len(answered.workloads) - len(now), refused=len(now))
        news = (was, before, self.problem) != (answered.workloads if answered else None, now, problem)
        self.answered, self.problem = answered, problem
        if news:
            self._changed()


def _rights(snapshot: Snapshot) -> Discovery | None:
    node = snapshot.nodes.get(snapshot.node)
    return node.spec.discovery if node else None


def _said(workload: Workload) -> tuple[object, ...]:
    """What every node may see of it, but the labels: those an operator may change."""
    spec = workload.spec
    return spec.node, spec.service_account, spec.address, spec.ports
