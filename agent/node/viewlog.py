"""The mesh on disk as last seen: a whole view, and a log of what came since.

    view.json      a whole view; says the number of its log
    view-N.log     one line for each change after it: checksum, space, JSON

The rules in the kernel outlive the agent, and after a crash with the centre gone the view on disk is all there is to
judge them by: with an older one, connections that were captured would be let go in clear. So every change is on disk
before rules follow it, and because writing a large mesh whole takes a second, only the change is written. When the log
has outgrown the view, a new view takes its place under the next number. A torn last line is what a crash leaves: what
it said never became a rule.
"""

import hashlib
from collections.abc import Iterator, Sequence

import immutables
import msgspec

from agent.node.files import Files
from agent.node.view import Change, MeshView, known_kinds
from agent.snapshot import Snapshot
from ca.contract import LocalMatch, ResourceName
from ca.resources.kinds import decode_known, encode
from ca.resources.metadata import Key
from ca.resources.workload import Match

NAME = "view.json"
LEAST = 2**20
"""Bytes that the log may have, however small the view."""

_SUM = 16


class _Whole(msgspec.Struct, frozen=True):
    node: str
    log: int
    revision: int
    incarnation: str
    kinds: list[str]
    resources: list[msgspec.Raw]
    matches: list[LocalMatch]


class _Since(msgspec.Struct, frozen=True, omit_defaults=True):
    """`matches` is None when they stay as they were."""

    revision: int
    incarnation: str
    put: list[msgspec.Raw] = []
    delete: list[ResourceName] = []
    matches: list[LocalMatch] | None = None


class ViewLog:
    """`load` once, then `keep` every change, from any thread, one at a time."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._number = 0
        self._room = 0  # bytes left in the log until a whole view is written; none at first
        self._matches: immutables.Map[Key, Match] | None = None

    def load(self, node: str) -> MeshView | None:
        """The view as this `node` last kept it. What a version with other kinds kept may have gaps: it holds until the
        centre answers, but without an incarnation, which makes the centre send everything again."""
        logs = [int(n) for name in self._files.names("view-*.log") if (n := name[5:-4]).isdigit()]
        self._number = max(logs, default=0)
        whole = self._files.read(NAME, lambda body: msgspec.json.decode(body, type=_Whole))
        if whole is None or whole.node != node:
            return None
        self._number = max(self._number, whole.log)
        snapshot = Snapshot(node).apply(whole.revision, decode_known(whole.resources), ())
        view = MeshView(snapshot, _map(whole.matches), whole.incarnation)
        data = self._files.read_raw(_log(whole.log)) or b""
        intact = 0
        for line, since in _lines(data):
            intact += len(line)
            view = _after(view, since)
        if whole.kinds != known_kinds():
            return MeshView(view.snapshot, view.matches, "")
        if intact == len(data) and whole.log == self._number:
            size = sum(len(r) for r in map(bytes, whole.resources))
            self._room, self._matches = max(LEAST, size) - len(data), view.matches
        return view

    def keep(self, changes: Sequence[Change], view: MeshView) -> None:
        """Have `changes`, the last of which led to `view`, on disk. StateError; the next call then writes it whole."""
        lines = b"".join(self._line(change) for change in changes)
        room, self._room = self._room - len(lines), 0
        if room <= 0:
            room = self._write(view)
        elif lines:
            self._files.append(_log(self._number), lines)
        self._room = room

    def _write(self, view: MeshView) -> int:
        self._number += 1
        resources = [msgspec.Raw(encode(r)) for r in view.resources()]
        snapshot = view.snapshot
        whole = _Whole(
            snapshot.node,
            self._number,
            snapshot.revision,
            view.incarnation,
            known_kinds(),
            resources,
            _list(view.matches),
        )
        body = msgspec.json.encode(whole)
        self._files.write(NAME, body)
        for name in self._files.names("view-*.log"):
            self._files.remove(name)
        return max(LEAST, len(body))

    def _line(self, change: Change) -> bytes:
        view = change.view
        matches = None if view.matches is self._matches else _list(view.matches)
        self._matches = view.matches
        put = [msgspec.Raw(raw) for raw in change.put]
        since = _Since(view.snapshot.revision, view.incarnation, put, list(change.delete), matches)
        body = msgspec.json.encode(since)
        return _checksum(body) + b" " + body + b"\n"


def _lines(data: bytes) -> Iterator[tuple[bytes, _Since]]:
    """The intact lines from the beginning."""
    for line in data.splitlines(keepends=True):
        checksum, _, body = line[:-1].partition(b" ")
        if not line.endswith(b"\n") or checksum != _checksum(body):
            return
        yield line, msgspec.json.decode(body, type=_Since)


def _after(view: MeshView, since: _Since) -> MeshView:
    gone = [Key(n.kind, n.namespace, n.name) for n in since.delete]
    snapshot = view.snapshot.apply(since.revision, decode_known(since.put), gone)
    matches = view.matches if since.matches is None else _map(since.matches)
    return MeshView(snapshot, matches, since.incarnation)


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(body).hexdigest()[:_SUM].encode()


def _map(matches: list[LocalMatch]) -> immutables.Map[Key, Match]:
    return immutables.Map({Key("Workload", m.namespace, m.name): m.match for m in matches})


def _list(matches: immutables.Map[Key, Match]) -> list[LocalMatch]:
    return [LocalMatch(k.namespace, k.name, m) for k, m in matches.items()]


def _log(number: int) -> str:
    return f"view-{number}.log"
