"""From the frames of a session to whole views of the mesh, and from a view to what a worker is told. Pure.

The centre may send one change in several Deltas (`more`), may start over (`reset`), and sends what concerns only this
node in Private, ahead of the Delta it belongs to. Nobody behind `Intake` sees any of that: each Change is a whole view
and the difference from the one before, also after a reset, so that workers never serve an emptied or a half view.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import immutables
import msgspec

from agent.messages import View
from agent.snapshot import Snapshot
from ca.contract import ContractError, Delta, Private, ResourceName
from ca.resources.kinds import KINDS, Resource, decode_known, encode
from ca.resources.metadata import Key
from ca.resources.workload import Match

PIECE = 500
"""Objects in one View for a new worker: some 200 KB, so that no message takes long to read."""


@dataclass(frozen=True, slots=True)
class MeshView:
    """All that a node knows: the mesh, how to recognise its own workloads, and whose count `snapshot.revision` is."""

    snapshot: Snapshot
    matches: immutables.Map[Key, Match] = field(default_factory=immutables.Map)
    incarnation: str = ""

    def resources(self) -> Iterator[Resource]:
        """Every object, in no order."""
        s = self.snapshot
        if s.mesh:
            yield s.mesh
        yield from s.nodes.values()
        yield from s.workloads.values()
        for policies in s.policies.values():
            yield from policies.values()
        yield from s.revoked.objects.values()

    def get(self, key: Key) -> Resource | None:
        """One object."""
        match key.kind:
            case "Workload":
                return self.snapshot.workloads.get(key)
            case "Node":
                return self.snapshot.nodes.get(key.name)
            case "Mesh":
                return self.snapshot.mesh
            case "AuthorizationPolicy" | "PeerAuthentication":
                scope = self.snapshot.policies.get(key.namespace)
                return scope.get(key) if scope else None
            case "Revocation":
                return self.snapshot.revoked.objects.get(key)
        return None


@dataclass(frozen=True, slots=True)
class Change:
    """A new view and what it changes for workers: objects put, as JSON, and objects gone."""

    view: MeshView
    put: tuple[bytes, ...] = ()
    delete: tuple[ResourceName, ...] = ()


class Intake:
    """Takes the frames of sessions in order. Begin each session with `restart`: what the last one sent half is void."""

    def __init__(self, view: MeshView) -> None:
        self.view = view
        self.restart()

    def restart(self) -> None:
        """A new session: forget what has not become part of a view."""
        self._reset = False
        self._put: dict[Key, Resource] = {}
        self._deleted: set[Key] = set()
        self._private: Private | None = None

    def private(self, frame: Private) -> Change | None:
        """Kept until the Delta of its revision; a Change at once when that revision is already here."""
        self._private = frame
        if frame.revision > self.view.snapshot.revision or self._gathering():
            return None
        return self._changed(replace(self.view, matches=self._matches()))

    def delta(self, frame: Delta) -> Change | None:
        """The Change, or None while more is to come. Raises ContractError for objects that cannot be read."""
        if frame.reset:
            self._reset, self._put, self._deleted = True, {}, set()
        try:
            put = {r.key: r for r in decode_known(frame.put)}
        except msgspec.MsgspecError as error:
            raise ContractError(f"the centre sent an object that cannot be read: {error}") from error
        for name in frame.delete:
            key = Key(name.kind, name.namespace, name.name)
            if key not in put:
                self._deleted.add(key)
                self._put.pop(key, None)
        self._deleted.difference_update(put)
        self._put.update(put)
        if frame.more:
            return None
        old = self.view.snapshot
        base = Snapshot(old.node) if self._reset else old
        new = base.apply(frame.revision, self._put.values(), sorted(self._deleted))
        return self._changed(MeshView(new, self._matches(frame.revision), frame.incarnation or self.view.incarnation))

    def _gathering(self) -> bool:
        return self._reset or bool(self._put) or bool(self._deleted)

    def _matches(self, revision: int = 0) -> immutables.Map[Key, Match]:
        private = self._private
        if private is None or private.revision > max(revision, self.view.snapshot.revision):
            return self.view.matches
        self._private = None
        return immutables.Map({Key("Workload", m.namespace, m.name): m.match for m in private.matches})

    def _changed(self, new: MeshView) -> Change:
        old = self.view
        put = [encode(r) for k, r in self._put.items() if old.get(k) != r]
        deleted = {k for k in self._deleted if old.get(k) is not None}
        if self._reset:
            deleted.update(r.key for r in old.resources() if new.get(r.key) is None)
        self.view = new
        self._reset, self._put, self._deleted = False, {}, set()
        return Change(new, tuple(put), tuple(ResourceName(k.kind, k.name, k.namespace) for k in sorted(deleted)))


def whole(view: MeshView) -> Iterator[View]:
    """The view for a worker that has none, in pieces; only the last carries the revision, as only then it holds."""
    resources = view.resources()
    reset = True
    while piece := [encode(r) for r in islice(resources, PIECE)]:
        yield View(0, piece, reset=reset)
        reset = False
    yield View(view.snapshot.revision, reset=reset)


def known_kinds() -> list[str]:
    """The kinds this version keeps. A view saved by a version that knew fewer has gaps, and must be asked for anew."""
    return sorted(KINDS)
