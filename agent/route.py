"""Where a captured connection goes. Pure: facts in, a decision with its reason out."""

from collections.abc import Callable
from dataclasses import dataclass

from agent.snapshot import Snapshot
from ca.identity import WorkloadIdentity
from ca.resources.mesh import Egress
from ca.resources.workload import NEVER_CAPTURED, Workload


@dataclass(frozen=True, slots=True)
class Local:
    """The destination is a workload of this node: no tunnel, the same checks."""

    destination: Workload


@dataclass(frozen=True, slots=True)
class Tunnel:
    """Through a tunnel to the node at (`address`, `port`), which must prove to be `identity`."""

    destination: Workload
    identity: WorkloadIdentity
    address: str
    port: int


@dataclass(frozen=True, slots=True)
class Direct:
    """In plaintext to where it was going: no workload of the mesh is there."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not at all."""

    reason: str


Decision = Local | Tunnel | Direct | Refuse


def is_loopback(address: str) -> bool:
    """Whether an address, as the kernel spells it, never leaves its network namespace."""
    return address.startswith("127.") or address == "::1"


def exactly(snapshot: Snapshot, address: str, port: int) -> tuple[Workload, ...]:
    """The enrolled workloads of this node at just this address and port: all that a peer on another node may ask for,
    or any address in the world could be reached through here."""
    return tuple(w for w in snapshot.at(address, port) if w.spec.node == snapshot.node)


def clash(found: tuple[Workload, ...], address: str, port: int) -> Refuse:
    """What to say where several workloads claim one place: either might be meant, so neither is."""
    return Refuse(f"{' and '.join(w.title for w in found)} both claim {address} port {port}: make the ports differ")


def here(snapshot: Snapshot, address: str, port: int) -> Workload | Refuse | None:
    """The enrolled workload of this node that (address, port) belongs to, if any; `address` is known to be this node's.

    A workload that shares its node's address is also meant by every other address of the node, loopback included.
    """
    found = exactly(snapshot, address, port)
    if not found:
        node = snapshot.nodes.get(snapshot.node)
        shared = node.spec.address if node else ""
        everybody = snapshot.here.values() if shared else ()
        found = tuple(w for w in everybody if port in w.spec.ports and snapshot.address(w) == shared)
    if len(found) > 1:
        return clash(found, address, port)
    return found[0] if found else None


def route(
    snapshot: Snapshot,
    address: str,
    port: int,
    *,
    ours: Callable[[str], bool] = is_loopback,
    inside: Workload | None = None,
) -> Decision:
    """Where a connection of an enrolled local workload to (address, port) goes.

    `ours` tells the addresses of this machine, which mean its workloads too; it is asked only where that matters.
    `inside` is the workload that connects, where it has a network namespace of its own: there they mean itself.
    """
    mesh = snapshot.mesh
    if mesh is None:
        return Refuse("the node has no view of the mesh yet")
    if port in NEVER_CAPTURED:
        return Refuse(f"port {port} is one of Culvert's own")
    found = snapshot.at(address, port)
    if not found and inside is not None:
        found = (inside,) if is_loopback(address) and port in inside.spec.ports else ()
    elif not found and (local := here(snapshot, address, port)) and ours(address):
        if isinstance(local, Refuse):
            return local
        found = (local,)
    if len(found) > 1:
        return clash(found, address, port)
    if not found:
        if mesh.spec.egress is Egress.REGISTRY_ONLY:
            return Refuse(f"no workload of the mesh serves {address} port {port}, and egress is registry-only")
        return Direct(f"no workload of the mesh serves {address} port {port}")
    destination = found[0]
    if destination.spec.node == snapshot.node:
        return Local(destination)
    node = snapshot.nodes.get(destination.spec.node)
    if node is None or not node.spec.address:
        return Refuse(f"{destination.title} is on node {destination.spec.node}, which has not joined yet")
    return Tunnel(destination, destination.identity(mesh.spec.trust_domain), node.spec.address, node.spec.tunnel_port)
