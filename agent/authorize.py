"""Who may connect to a local workload. Facts in, a decision with its reason out. Fails closed.

The policies that bear on a workload are compiled when it is first asked for, and again when any object they came from
was replaced; in between a judgement costs a few dictionary look-ups.
"""

from agent.policy import Compiled, Decision, Facts, compile_policies
from agent.snapshot import Snapshot
from ca.resources.metadata import Key
from ca.resources.workload import Workload

_Made = tuple[object, object, object, object]


class Authorizer:
    """Remembers what was compiled; everything it decides follows from its arguments."""

    def __init__(self) -> None:
        self._compiled: dict[Key, tuple[_Made, Compiled]] = {}

    def judge(self, snapshot: Snapshot, facts: Facts, destination: Workload) -> Decision:
        """Whether the connection described by `facts` may reach `destination`."""
        mesh = snapshot.mesh
        if mesh is None:
            return Decision(False, "the node has no view of the mesh yet")
        if destination.key not in snapshot.here:
            return Decision(False, f"{destination.title} is not enrolled on this node")
        if facts.identity is not None and facts.identity.trust_domain != mesh.spec.trust_domain:
            return Decision(False, f"trust domain {facts.identity.trust_domain} is not ours, {mesh.spec.trust_domain}")
        if snapshot.revoked.identities:
            ours = destination.identity(mesh.spec.trust_domain)
            why = snapshot.revoked.identity(ours) or (facts.identity and snapshot.revoked.identity(facts.identity))
            if why:
                return Decision(False, why)
        return self._of(snapshot, destination).judge(facts)

    def _of(self, snapshot: Snapshot, workload: Workload) -> Compiled:
        policies = snapshot.policies
        made = (snapshot.mesh, workload, policies.get(""), policies.get(workload.metadata.namespace))
        known = self._compiled.get(workload.key)
        # The same objects, not equal ones: comparing thousands of policies would cost more than compiling them.
        if known is None or any(a is not b for a, b in zip(known[0], made, strict=True)):
            known = self._compiled[workload.key] = (made, compile_policies(snapshot, workload))
        return known[1]

    def forget(self, snapshot: Snapshot) -> None:
        """Drop what was compiled for workloads that are no longer here."""
        for key in [k for k in self._compiled if k not in snapshot.here]:
            del self._compiled[key]
