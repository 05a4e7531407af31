"""Who may connect to a local workload. Pure: facts in, a decision with its reason out. Fails closed."""

from dataclasses import dataclass

from agent.snapshot import Snapshot
from ca.identity import WorkloadIdentity
from ca.resources.mesh import Mode
from ca.resources.workload import Workload


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` names what decided; empty when nothing stood against it."""

    allowed: bool
    reason: str = ""


def authorize(snapshot: Snapshot, source: WorkloadIdentity | None, destination: Workload) -> Decision:
    """Whether a connection whose caller proved to be `source` (None: nobody) may reach `destination`."""
    mesh = snapshot.mesh
    if mesh is None:
        return Decision(False, "the node has no view of the mesh yet")
    if destination.key not in snapshot.here:
        return Decision(False, f"{destination.title} is not enrolled on this node")
    if source is None:
        if mesh.spec.mode is Mode.STRICT:
            return Decision(False, f"mode STRICT: {destination.title} accepts no connection without an identity")
        return Decision(True)
    if source.trust_domain != mesh.spec.trust_domain:
        return Decision(False, f"trust domain {source.trust_domain} is not ours, {mesh.spec.trust_domain}")
    return Decision(True)
