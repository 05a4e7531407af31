"""From what the store has on record to the certificates that matter now, each with its life. Pure."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from ca import x509
from ca.identity import NodeIdentity, WorkloadIdentity, parse
from ca.lifetimes import Lifetime
from ca.registry import State
from ca.store import Holder, StoredIssuer


def lifetimes(state: State, issuers: Iterable[StoredIssuer], holders: Iterable[Holder]) -> Iterator[Lifetime]:
    """What signs, then the last certificate of each holder; only what is wanted. Left out is that of a node that was
    deleted or revoked, of a workload that moved, of an issuer that has a successor, and of an operator: nobody knows
    whether his credential is used, and he is warned when he uses it."""
    signing = list(issuers)
    last_root = max((i.not_after for i in signing if i.role == "root"), default=0.0)
    for issuer in signing:
        # One that ends with its root has no successor, and the root's own alarm says all there is to say.
        if not issuer.retired and (issuer.role == "root" or issuer.not_after < last_root):
            begins, ends = x509.life(x509.load_chain(issuer.certificate)[0])
            yield Lifetime(issuer.role, issuer.fingerprint[:12], ends, ends - begins)
    wanted: dict[str, frozenset[str]] = {}
    for holder in holders:
        ends = datetime.fromtimestamp(holder.not_after, UTC)
        life = timedelta(seconds=holder.not_after - holder.issued)
        match parse(holder.identity):
            case NodeIdentity(name=name) if state.member(name):
                yield Lifetime("node", name, ends, life)
            case WorkloadIdentity():
                if holder.node not in wanted:
                    wanted[holder.node] = _wanted(state, holder.node)
                if holder.identity in wanted[holder.node]:
                    yield Lifetime("workload", f"{holder.identity} on node {holder.node}", ends, life)


def _wanted(state: State, node: str) -> frozenset[str]:
    """The identities for which the node has to have certificates."""
    mesh = state.mesh
    if mesh is None or not state.member(node):
        return frozenset()
    here = (w for w in state.on_node(node) if mesh.spec.enrolment.matches(w.metadata.labels))
    identities = {w.identity(mesh.spec.trust_domain) for w in here}
    return frozenset(str(i) for i in identities if not state.objection(i))
