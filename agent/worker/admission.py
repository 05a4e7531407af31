"""What a CONNECT comes to: who speaks, whom it means, and whether that is allowed. Facts in, a Ruling out.

Connections between the same two ends come to the same for as long as the view does not change. So a ruling is kept, and
only what is a connection's own, the caller's port and the trace, is read each time.
"""

import ipaddress
import re
from dataclasses import dataclass
from functools import lru_cache, partial

from agent.authorize import Authorizer
from agent.connections import Party
from agent.policy import Decision, Facts
from agent.route import clash, exactly
from agent.snapshot import Snapshot
from agent.worker import opaque
from ca.identity import WorkloadIdentity
from ca.resources.workload import NEVER_CAPTURED, Workload

_AUTHORITY = re.compile(r"(?:\[([0-9a-fA-F:.]{2,45})\]|([0-9.]{7,15})):([0-9]{1,5})")
# An IPv4 address is one of the second kind too: told apart it is found without going back from its port.
_FORWARDED = re.compile(r'for="([0-9.]{7,15}|\[?[0-9a-fA-F:.]{2,45}\]?):([0-9]{1,5})"')
_KEPT = 4096  # rulings; full, it starts anew


def endpoint(address: str, port: int) -> str:
    """`address:port`, with the brackets that IPv6 needs."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


@lru_cache(maxsize=4096)
def parse_authority(text: str) -> tuple[str, int] | None:
    """(address, port) of a CONNECT's authority; None unless it is an IP address and a port, in any spelling."""
    found = _AUTHORITY.fullmatch(text)
    if not found:
        return None
    try:
        address = str(ipaddress.ip_address(found[1] or found[2]))
    except ValueError:
        return None
    port = int(found[3])
    return (address, port) if 0 < port < 65536 else None


def parse_forwarded(text: str) -> tuple[str, int]:
    """(address, port) that a peer says it speaks for; ("", 0) if it says nothing that can be read."""
    found = _FORWARDED.fullmatch(text)
    return (found[1].strip("[]"), int(found[2])) if found and int(found[2]) < 2**16 else ("", 0)


@dataclass(frozen=True, slots=True)
class Judged:
    """A stream that means a workload of this node. `facts` are what `decision` was taken by."""

    workload: Workload
    where: tuple[str, int]
    facts: Facts
    decision: Decision
    opaque: bool


@dataclass(frozen=True, slots=True)
class Ruling:
    """`source` is the workload that speaks (namespace/name), where only one can be meant; `caller` is its address, and
    `believed` whether that is the one the peer gave. A `status` other than 200 is the answer, because of `reason`."""

    source: str
    caller: str
    believed: bool
    destination: Party
    judged: Judged | None = None
    status: int = 200
    reason: str = ""


class Admission:
    """Remembers rulings; everything in them follows from the arguments."""

    def __init__(self, authorizer: Authorizer) -> None:
        self._authorizer = authorizer
        self._snapshot: Snapshot | None = None
        self._rulings: dict[tuple[str, ...], Ruling] = {}

    def rule(
        self,
        snapshot: Snapshot,
        peer: WorkloadIdentity,
        local: WorkloadIdentity,
        address: str,
        claimed: str,
        authority: str,
    ) -> Ruling:
        """On a stream for `authority`, in a tunnel between `peer` at `address` and `local`, by one that says to be at
        `claimed`."""
        if snapshot is not self._snapshot or len(self._rulings) >= _KEPT:
            self._snapshot = snapshot
            self._rulings.clear()
        key = str(peer), str(local), address, claimed, authority
        ruling = self._rulings.get(key)
        if ruling is None:
            ruling = self._rulings[key] = self._rule(snapshot, peer, local, address, claimed, authority)
        return ruling

    def _rule(
        self,
        snapshot: Snapshot,
        peer: WorkloadIdentity,
        local: WorkloadIdentity,
        address: str,
        claimed: str,
        authority: str,
    ) -> Ruling:
        # Believed only where a workload with the peer's identity lives.
        believed = bool(_speakers(snapshot, peer, claimed))
        caller = claimed if believed else address
        speakers = _speakers(snapshot, peer, caller)
        ruling = partial(Ruling, speakers[0] if len(speakers) == 1 else "", caller, believed)
        where = parse_authority(authority)
        if where is None:
            return ruling(Party(), status=400, reason=f"authority {authority!r} is no IP address and port")
        destination = Party(address=endpoint(*where))
        if where[1] in NEVER_CAPTURED:
            return ruling(destination, status=503, reason=f"port {where[1]} is one of Culvert's own")
        meant = exactly(snapshot, *where)
        if len(meant) > 1:
            return ruling(destination, status=503, reason=clash(meant, *where).reason)
        domain = snapshot.mesh.spec.trust_domain if snapshot.mesh else ""
        if not meant or meant[0].identity(domain) != local:
            reason = f"no workload here is {local} at {endpoint(*where)}"
            return ruling(destination, status=400, reason=reason)
        workload, facts = meant[0], Facts(peer, caller, *where)
        destination = Party(workload.title, str(local), endpoint(*where))
        decision = self._authorizer.judge(snapshot, facts, workload)
        judged = Judged(workload, where, facts, decision, opaque.arriving(snapshot, workload, caller, where[1]))
        if decision.allowed:
            return ruling(destination, judged)
        return ruling(destination, judged, status=401, reason=decision.reason)


def _speakers(snapshot: Snapshot, identity: WorkloadIdentity, address: str) -> list[str]:
    """The workloads with that identity that live at the address, as namespace/name."""
    domain = snapshot.mesh.spec.trust_domain if snapshot.mesh else ""
    workloads = (snapshot.workloads[key] for key in snapshot.by_address.get(address, ()))
    return [w.title for w in workloads if w.identity(domain) == identity]
