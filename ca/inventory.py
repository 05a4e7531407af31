"""From what the store has on record to the certificates that matter now, each with its life. Pure."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from ca import x509
from ca.identity import NodeIdentity, OperatorIdentity, WorkloadIdentity, parse
from ca.lifetimes import Lifetime
from ca.registry import State
from ca.store import Holder, StoredIssuer


def lifetimes(state: State, issuers: Iterable[StoredIssuer], holders: Iterable[Holder]) -> Iterator[Lifetime]:
    """What signs, then the last certificate of each holder. `held` is false where nobody should hold it any more: the
    node was deleted or revoked, the workload moved, or another issuing certificate took over."""
    signing = list(issuers)
    last_root = max((i.not_after for i in signing if i.role == "root"), default=0.0)
    for issuer in signing:
        cert = x509.load_chain(issuer.certificate)[0]
        begins, ends = x509.life(cert)
        # One that ends with its root has no successor, and the root's own alarm says all there is to say.
        held = not issuer.retired and (issuer.role == "root" or issuer.not_after < last_root)
        yield Lifetime(issuer.role, issuer.fingerprint[:12], ends, ends - begins, held)
    wanted: dict[str, frozenset[str]] = {}
    for holder in holders:
        ends = datetime.fromtimestamp(holder.not_after, UTC)
        life = timedelta(seconds=holder.not_after - holder.issued)
        match parse(holder.identity):
            case NodeIdentity(name=name):
                yield Lifetime("node", name, ends, life, state.member(name))
            case WorkloadIdentity():
                if holder.node not in wanted:
                    wanted[holder.node] = _wanted(state, holder.node)
                held = holder.identity in wanted[holder.node]
                yield Lifetime("workload", f"{holder.identity} on node {holder.node}", ends, life, held)
            case OperatorIdentity(name=name):
                # Nobody knows whether a credential is used: its user is warned when he does.
                yield Lifetime("operator", name, ends, life, held=False)


def _wanted(state: State, node: str) -> frozenset[str]:
    """The identities for which the node has to have certificates."""
    mesh = state.mesh
    if mesh is None or not state.member(node):
        return frozenset()
    here = (w for w in state.on_node(node) if mesh.spec.enrolment.matches(w.metadata.labels))
    identities = {w.identity(mesh.spec.trust_domain) for w in here}
    return frozenset(str(i) for i in identities if not state.objection(i))
