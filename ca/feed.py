"""The mesh as a stream of deltas: encoded once, whoever watches.

A Feed follows the centre's State. Every `tick` at most, it turns what changed since its last step into frames and
keeps them in a short ring; all watchers send those same bytes. The first change of a quiet period goes out at once.
There is no queue per watcher: one that falls behind the ring gets a single coalesced delta from the change log, so
that a slow node costs the others nothing. The whole mesh, for a node that starts, is encoded once too and shared as
long as the change log can bring its reader up to date.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec
import trio

from ca import frames
from ca.contract import Delta, ResourceName
from ca.registry import Changes, State, since
from ca.resources.kinds import Resource, encode
from ca.resources.workload import Workload

CHUNK = 2**18
"""Bytes of objects in one frame, about: large enough to be cheap, small enough to be sent within a stall limit."""

RING = 256
"""Steps kept for watchers to share; at the default tick, thirteen seconds of steady change."""

RING_BYTES = 2**25
"""Bytes the ring may hold beyond its newest step."""

REUSED = 1000
"""A kept encoding of the whole mesh is reused until this many revisions came after it."""


@dataclass(frozen=True, slots=True)
class Step:
    """Frames that turn the mesh of revision `before` into `state`."""

    before: int
    state: State
    frames: tuple[bytes, ...]


class Feed:
    """Follows the states given to `publish`. `run` is its one task; any number may call `start` and `after`."""

    def __init__(self, state: State, tick: float) -> None:
        self.state = state
        self._latest = state
        self._tick = tick
        self._ring: deque[Step] = deque()
        self._size = 0
        self._whole: Step | None = None
        self._encoding = trio.Lock()
        self._published = trio.Event()
        self._stepped = trio.Event()

    def publish(self, state: State) -> None:
        """Take note of a newer State."""
        self._latest = state
        self._published.set()

    async def run(self) -> None:
        """Make steps until cancelled."""
        while True:
            await self._published.wait()
            self._published = trio.Event()
            await self._step(self._latest)
            await trio.sleep(self._tick)

    async def start(self, revision: int, incarnation: str) -> Step:
        """What a watcher that has this view must be told first; it may come to an empty delta. What was published
        before this call is in it: a node that has just joined must find itself."""
        wanted = self._latest.revision
        while self.state.revision < wanted:
            await self._stepped.wait()
        changes = since(self.state, revision, incarnation)
        if changes.reset:
            return await self._everything()
        state = self.state
        return Step(revision, state, await _encoded(changes, state))

    async def after(self, revision: int) -> Step:
        """The next step of a watcher that `start` or `after` brought to `revision`; waits until there is one."""
        while revision == self.state.revision:
            await self._stepped.wait()
        for step in self._ring:
            if step.before == revision:
                return step
        return await self.start(revision, self.state.incarnation)

    async def _everything(self) -> Step:
        async with self._encoding:
            kept, state = self._whole, self.state
            if kept is None or kept.state.revision < max(state.compacted, state.revision - REUSED):
                changes = Changes(state.revision, state.objects.values(), reset=True)
                kept = Step(0, state, await _encoded(changes, state))
                self._whole = kept
            return kept

    async def _step(self, state: State) -> None:
        before = self.state.revision
        if state.revision == before:
            return
        changes = since(state, before, state.incarnation)
        step = Step(before, state, await _encoded(changes, state))
        self._ring.append(step)
        self._size += sum(map(len, step.frames))
        while len(self._ring) > RING or (len(self._ring) > 1 and self._size > RING_BYTES):
            self._size -= sum(map(len, self._ring.popleft().frames))
        self.state = state
        self._stepped.set()
        self._stepped = trio.Event()


def public(resource: Resource) -> msgspec.Raw:
    """The object as every node may see it: a workload without the mark by which its own node recognises it, and without
    what is only said of it for the centre."""
    encoded = encode(resource)
    if isinstance(resource, Workload) and (resource.spec.match is not None or resource.spec.found is not None):
        # Through built-in values, because a copy of the struct would be validated again, at ten times the cost.
        plain = msgspec.json.decode(encoded)
        plain["spec"].pop("match", None)
        plain["spec"].pop("found", None)
        encoded = msgspec.json.encode(plain)
    return msgspec.Raw(encoded)


async def _encoded(changes: Changes, state: State) -> tuple[bytes, ...]:
    """`changes` as frames of about CHUNK bytes, with a chance for other tasks after each."""
    made: list[bytes] = []
    pieces = _pieces(map(public, changes.put))
    piece = next(pieces, [])
    more = True
    while more:
        following = next(pieces, None)
        more = following is not None
        delta = Delta(
            revision=changes.revision,
            incarnation=state.incarnation,
            put=piece,
            # Deletions travel with the first frame; no object is both put and deleted.
            delete=[] if made else [ResourceName(k.kind, k.name, k.namespace) for k in changes.delete],
            reset=changes.reset and not made,
            more=more,
        )
        made.append(frames.encode(delta))
        piece = following or []
        await trio.lowlevel.checkpoint()
    return tuple(made)


def _pieces(items: Iterable[msgspec.Raw]) -> Iterator[list[msgspec.Raw]]:
    piece: list[msgspec.Raw] = []
    total = 0
    for item in items:
        piece.append(item)
        total += len(memoryview(item))
        if total >= CHUNK:
            yield piece
            piece, total = [], 0
    if piece:
        yield piece
