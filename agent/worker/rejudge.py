"""What a change of the view means for connections that are already carried."""

from agent.authorize import Authorizer
from agent.book import Book, Entry
from agent.connections import Direction
from agent.snapshot import Snapshot
from ca.resources.metadata import Key


def rejudge(book: Book, authorizer: Authorizer, before: Snapshot, after: Snapshot, touched: set[Key] | None) -> None:
    """End the connections that the new view does not allow. `touched` are the changed objects; None: perhaps all.

    A workload that changes elsewhere in a large mesh costs nothing here: only its own connections are judged again. All
    are when the mesh, a policy or what is revoked changed.
    """
    if (
        touched is None
        or before.mesh is not after.mesh
        or before.policies is not after.policies
        or before.revoked is not after.revoked
    ):
        entries = list(book.live.values())
    else:
        titles = {f"{k.namespace}/{k.name}" for k in touched if k.kind == "Workload"}
        if not titles:
            return
        entries = [e for e in book.live.values() if e.source.workload in titles or e.destination.workload in titles]
    for entry in entries:
        reason = _objection(authorizer, after, entry)
        if reason and entry.carrier is not None:
            entry.carrier.abort(reason)


def _objection(authorizer: Authorizer, view: Snapshot, entry: Entry) -> str:
    """Why the connection may not go on; empty if it may."""
    if entry.direction is Direction.OUTBOUND:
        if not entry.source.workload:
            return ""  # nobody's, which the resolver passed on as it was: policies hold where it arrives
        if _named(entry.source.workload) not in view.here:
            return f"{entry.source.workload} is not enrolled any more"
        if not entry.destination.identity:
            return ""  # to a stranger, as nobody
        return view.revoked.identity(entry.source.identity) or view.revoked.identity(entry.destination.identity)
    key = _named(entry.destination.workload)
    workload = view.here.get(key) if key else None
    if workload is None or entry.facts is None:
        return f"{entry.destination.workload} is not enrolled any more"
    decision = authorizer.judge(view, entry.facts, workload)
    return "" if decision.allowed else decision.reason


def _named(title: str) -> Key | None:
    namespace, slash, name = title.partition("/")
    return Key("Workload", namespace, name) if slash else None
