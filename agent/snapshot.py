"""The frozen mesh view a node acts on.

A Snapshot is a value: `apply` gives a new one and leaves the old as it was, sharing all that did not change, so that a
change costs what it changes whatever the size of the mesh. Supervisor and worker hold one each, fed the same deltas.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

import immutables

from ca.resources.kinds import Resource
from ca.resources.mesh import Mesh
from ca.resources.metadata import Key
from ca.resources.node import Node
from ca.resources.policy import AuthorizationPolicy, PeerAuthentication, Policy
from ca.resources.revocation import Revocation
from ca.resources.workload import Workload
from ca.revoked import NONE_REVOKED, Revoked

_P = TypeVar("_P")

Endpoint = tuple[str, int]
"""(address, TCP port) as the kernel has them: the address in its canonical spelling."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one node knows of the mesh at `revision`. `node` is that node's own name; `policies` are by namespace, those
    of the whole mesh under "".

    `here` (those of this node), `by_endpoint` and `by_address` hold enrolled workloads only: what is not enrolled is as
    unknown to the data path as a stranger. The latter two list several workloads where several claim the same place.
    """

    node: str
    revision: int = 0
    mesh: Mesh | None = None
    nodes: immutables.Map[str, Node] = field(default_factory=immutables.Map)
    workloads: immutables.Map[Key, Workload] = field(default_factory=immutables.Map)
    policies: immutables.Map[str, immutables.Map[Key, Policy]] = field(default_factory=immutables.Map)
    revoked: Revoked = NONE_REVOKED
    here: immutables.Map[Key, Workload] = field(default_factory=immutables.Map)
    by_endpoint: immutables.Map[Endpoint, frozenset[Key]] = field(default_factory=immutables.Map)
    by_address: immutables.Map[str, frozenset[Key]] = field(default_factory=immutables.Map)

    def apply(self, revision: int, put: Iterable[Resource], delete: Iterable[Key]) -> "Snapshot":
        """The view after these changes."""
        changed = {r.key: r for r in put}
        removed = [k for k in delete if k not in changed]
        mesh, nodes, policies, revoked = self.mesh, self.nodes, self.policies, self.revoked
        touched: dict[Key, Workload | None] = {}
        for resource in changed.values():
            match resource:
                case Workload():
                    touched[resource.key] = resource
                case Node():
                    nodes = nodes.set(resource.metadata.name, resource)
                case Mesh():
                    mesh = resource
                case Revocation():
                    revoked = revoked.put(resource)
                case AuthorizationPolicy() | PeerAuthentication():
                    scope = policies.get(resource.metadata.namespace, immutables.Map())
                    policies = policies.set(resource.metadata.namespace, scope.set(resource.key, resource))
        for key in removed:
            if key.kind == "Workload":
                touched[key] = None
            elif key.kind == "Node" and key.name in nodes:
                nodes = nodes.delete(key.name)
            elif key.kind == "Revocation":
                revoked = revoked.drop(key)
            elif key in (scope := policies.get(key.namespace, immutables.Map())):
                policies = policies.set(key.namespace, scope.delete(key))
        if _selector(mesh) != _selector(self.mesh) or _addresses(nodes, changed, removed) != _addresses(
            self.nodes, changed, removed
        ):
            # What is enrolled, or where it is, may have changed for any workload: index afresh. Rare by nature.
            touched = {**self.workloads, **touched}
        view = replace(self, revision=revision, mesh=mesh, nodes=nodes, policies=policies, revoked=revoked)
        return view._index(self, touched)

    def _index(self, before: "Snapshot", touched: dict[Key, Workload | None]) -> "Snapshot":
        workloads, here = self.workloads.mutate(), self.here.mutate()
        endpoints, addresses = self.by_endpoint.mutate(), self.by_address.mutate()
        for key, new in touched.items():
            old = before.workloads.get(key)
            if old is not None:
                for endpoint in before.endpoints(old):
                    _leave(endpoints, endpoint, key)
                if before.enrolled(old):
                    _leave(addresses, before.address(old), key)
            workloads.pop(key, None)
            here.pop(key, None)
            if new is None:
                continue
            workloads[key] = new
            for endpoint in self.endpoints(new):
                endpoints[endpoint] = endpoints.get(endpoint, frozenset()) | {key}
            if self.enrolled(new):
                addresses[self.address(new)] = addresses.get(self.address(new), frozenset()) | {key}
                if new.spec.node == self.node:
                    here[key] = new
        return replace(
            self,
            workloads=workloads.finish(),
            here=here.finish(),
            by_endpoint=endpoints.finish(),
            by_address=addresses.finish(),
        )

    def enrolled(self, workload: Workload) -> bool:
        """Whether the mesh's enrolment selector matches its labels."""
        return self.mesh is not None and self.mesh.spec.enrolment.matches(workload.metadata.labels)

    def address(self, workload: Workload) -> str:
        """Where the workload is reached: its own address, or its node's; empty until that node has joined."""
        node = self.nodes.get(workload.spec.node)
        return workload.spec.address or (node.spec.address if node else "")

    def endpoints(self, workload: Workload) -> list[Endpoint]:
        """The mesh addresses of an enrolled workload; none if it is not enrolled."""
        address = self.address(workload)
        if not address or not self.enrolled(workload):
            return []
        return [(address, port) for port in workload.spec.ports]

    def local(self) -> list[Workload]:
        """The enrolled workloads of this node, in the order of their keys."""
        return sorted(self.here.values(), key=lambda w: w.key)

    def at(self, address: str, port: int) -> tuple[Workload, ...]:
        """The enrolled workloads that serve this address and port; several when they contradict each other."""
        keys = self.by_endpoint.get((address, port), frozenset())
        return tuple(self.workloads[k] for k in sorted(keys))


def _selector(mesh: Mesh | None) -> dict[str, str] | None:
    return mesh.spec.enrolment.match_labels if mesh else None


def _addresses(nodes: immutables.Map[str, Node], changed: dict[Key, Resource], removed: list[Key]) -> list[str]:
    names = [k.name for k in (*changed, *removed) if k.kind == "Node"]
    return [nodes[n].spec.address if n in nodes else "" for n in names]


def _leave(index: "immutables.MapMutation[_P, frozenset[Key]]", place: _P, key: Key) -> None:
    rest = index.get(place, frozenset()) - {key}
    if rest:
        index[place] = rest
    else:
        index.pop(place, None)
