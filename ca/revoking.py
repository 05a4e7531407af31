"""What a revoked identity leaves behind: the certificates that it was given, or gave to its workloads. Pure.

Whoever revokes names an identity; the centre adds the serials of what was issued and has not ended. So a stolen node's
leaves are distrusted with it although others may have the same workloads, and taking the identity back into the mesh
(`restored`) does not take back the certificates that a thief may hold.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

import msgspec

from ca.identity import NodeIdentity, parse
from ca.resources.revocation import Revocation, read_time, write_time
from ca.store import StoredCertificate


def completed(
    revocation: Revocation, issued: Iterable[StoredCertificate], now: datetime, recovery: timedelta = timedelta(0)
) -> Revocation:
    """The revocation with the serials of every certificate of `issued` that its identity stands for, and when the last
    of its serials that are known here ends. `issued` has at least those, and its own serials as far as they are on
    record. A node's certificate is good for something beyond its end, for as long as `recovery` (see recovery)."""

    def until_when(c: StoredCertificate) -> float:
        return c.not_after + (recovery.total_seconds() if isinstance(parse(c.identity), NodeIdentity) else 0.0)

    spec = revocation.spec
    identity = parse(spec.identity) if spec.identity else None
    node = identity.name if isinstance(identity, NodeIdentity) else None
    live = [c for c in issued if until_when(c) > now.timestamp()]
    serials = set(spec.serials) | {
        c.serial for c in live if identity is not None and (c.identity == spec.identity or (node and c.node == node))
    }
    # What is not on record may live longer than anything that is: only whoever wrote its serial can say how long.
    known = identity is not None or serials <= {c.serial for c in live}
    ends = [datetime.fromtimestamp(until_when(c) + 1, UTC) for c in live if c.serial in serials] if known else []
    if spec.ends:
        ends.append(read_time(spec.ends, "ends"))
    until = write_time(max(ends)) if ends else ""
    return msgspec.structs.replace(
        revocation, spec=msgspec.structs.replace(spec, serials=tuple(sorted(serials)), ends=until)
    )


def restored(revocation: Revocation) -> Revocation | None:
    """What stays of it when its identity may be used again; None if nothing does."""
    spec = revocation.spec
    if not spec.identity or not spec.serials:
        return None
    return msgspec.structs.replace(revocation, spec=msgspec.structs.replace(spec, identity=""))
