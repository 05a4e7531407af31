"""What a change of the view means for connections that are already carried."""

from agent.authorize import Authorizer
from agent.book import Book, Entry
from agent.connections import Direction, Party
from agent.snapshot import Snapshot
from ca.resources.metadata import Key
from ca.resources.workload import Workload


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
        key = _named(entry.source.workload)
        source = view.here.get(key) if key else None
        if source is None:
            return f"{entry.source.workload} is not enrolled any more"
        if not entry.destination.identity:
            return ""  # to a stranger, as nobody
        if other := _another(view, source, entry.source):
            return other
        return view.revoked.identity(entry.source.identity) or view.revoked.identity(entry.destination.identity)
    key = _named(entry.destination.workload)
    workload = view.here.get(key) if key else None
    if workload is None or entry.facts is None:
        return f"{entry.destination.workload} is not enrolled any more"
    if entry.facts.identity is not None and (other := _another(view, workload, entry.destination)):
        return other  # the caller wanted the one that it was
    decision = authorizer.judge(view, entry.facts, workload)
    return "" if decision.allowed else decision.reason


def _another(view: Snapshot, workload: Workload, party: Party) -> str:
    """Why the workload is not any more who it was for this connection; empty if it is. Others of this node may still
    have the identity that it had, so that the tunnels which proved it go on."""
    now = str(workload.identity(view.mesh.spec.trust_domain)) if view.mesh else ""
    return f"{workload.title} is {now} now" if party.identity and party.identity != now else ""


def _named(title: str) -> Key | None:
    namespace, slash, name = title.partition("/")
    return Key("Workload", namespace, name) if slash else None
