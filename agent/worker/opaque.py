"""Whether a connection is opaque: carried, but never taken for HTTP, whatever it looks like. Pure.

Whoever calls may say so (`capture.out.opaque`), and so may who is called (`capture.in.opaque`): callers have to know as
well, and every node has that part of a workload.
"""

import ipaddress
from functools import lru_cache

from agent.snapshot import Snapshot
from ca.resources.capture import Opaque
from ca.resources.workload import Workload


def leaving(snapshot: Snapshot, source: Workload, destination: Workload | None, address: str, port: int) -> bool:
    """A connection of `source` to (address, port), which is `destination`'s if it is anybody's."""
    mesh = snapshot.mesh.spec.capture if snapshot.mesh else None
    if _named(source.spec.capture.out.opaque, address, port) or (mesh and _named(mesh.out.opaque, address, port)):
        return True
    return destination is not None and arriving(snapshot, destination, "", port)


def arriving(snapshot: Snapshot, destination: Workload, caller: str, port: int) -> bool:
    """A connection to `port` of `destination` from the address `caller` ("": not known here)."""
    mesh = snapshot.mesh.spec.capture if snapshot.mesh else None
    return _named(destination.spec.capture.in_.opaque, caller, port) or (
        mesh is not None and _named(mesh.in_.opaque, caller, port)
    )


def _named(opaque: Opaque, address: str, port: int) -> bool:
    if not (opaque.ports or opaque.cidrs):  # nearly always, and asked for every connection
        return False
    return port in opaque.ports or (bool(address) and _within(opaque.cidrs, address))


@lru_cache(maxsize=4096)
def _within(cidrs: tuple[str, ...], address: str) -> bool:
    found = ipaddress.ip_address(address)
    return any(found in ipaddress.ip_network(cidr) for cidr in cidrs)
