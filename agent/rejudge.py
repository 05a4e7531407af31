"""What a change of the view means for connections that are already carried."""

from agent.authorize import authorize
from agent.book import Book, Entry
from agent.connections import Direction
from agent.snapshot import Snapshot
from ca.identity import IdentityError, WorkloadIdentity, parse
from ca.resources.metadata import Key


def rejudge(book: Book, before: Snapshot, after: Snapshot, touched: set[Key] | None) -> None:
    """End the connections that the new view does not allow. `touched` are the changed objects; None: perhaps all.

    A change elsewhere in a large mesh costs nothing here: only connections of touched workloads are judged again, and
    all only when the mesh itself changed.
    """
    if before.mesh == after.mesh and touched is not None:
        titles = {f"{k.namespace}/{k.name}" for k in touched if k.kind == "Workload"}
        if not titles:
            return
        entries = [e for e in book.live.values() if e.source.workload in titles or e.destination.workload in titles]
    else:
        entries = list(book.live.values())
    for entry in entries:
        reason = _objection(after, entry)
        if reason and entry.carrier is not None:
            entry.carrier.abort(reason)


def _objection(view: Snapshot, entry: Entry) -> str:
    """Why the connection may not go on; empty if it may."""
    if entry.direction is Direction.OUTBOUND:
        source = _named(entry.source.workload)
        return "" if source in view.here else f"{entry.source.workload} is no longer enrolled here"
    key = _named(entry.destination.workload)
    workload = view.here.get(key) if key else None
    if workload is None:
        return f"{entry.destination.workload} is no longer enrolled here"
    try:
        identity = parse(entry.source.identity) if entry.source.identity else None
    except IdentityError as error:
        return str(error)
    if identity is not None and not isinstance(identity, WorkloadIdentity):
        return f"{identity} is no workload"
    return authorize(view, identity, workload).reason


def _named(title: str) -> Key | None:
    namespace, slash, name = title.partition("/")
    return Key("Workload", namespace, name) if slash else None
