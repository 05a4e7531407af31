"""What may grow while a soak runs, and by how much. Pure.

After a warm-up the run is cut in three; the least of the last third is held against the least of the first: load goes
up and down, and what leaked does not come down any more. A leak that stays below a bound in ten minutes shows in a
longer run: bounds do not grow with time.
"""

from collections.abc import Sequence

import msgspec

WARM_UP = 0.25
"""Share of the run in which pools, caches and arenas fill: it is not judged."""


class Reading(msgspec.Struct, frozen=True):
    """What one node's agent held at `at` seconds. MiB, counts."""

    node: str
    at: float
    memory: float
    descriptors: int
    connections: int
    tunnels: int
    streams: int


class Bound(msgspec.Struct, frozen=True):
    """A field may grow by `share` of what it was, or by `least`, whichever is more."""

    field: str
    share: float
    least: float


BOUNDS = (
    Bound("memory", 0.05, 4.0),
    Bound("descriptors", 0.05, 32),
    Bound("connections", 0.10, 32),
    Bound("tunnels", 0.0, 4),
    Bound("streams", 0.10, 32),
)

AT_REST = (
    Bound("descriptors", 0.0, 24),
    Bound("connections", 0.0, 0),
    Bound("streams", 0.0, 0),
    Bound("memory", 0.15, 16.0),
)
"""After the last connection has closed, against before the first: tunnels may be kept warm, nothing else is left."""


def grown(readings: Sequence[Reading], bounds: Sequence[Bound] = BOUNDS) -> list[str]:
    """What grew beyond its bound, in words, node by node. At least nine readings a node are needed to judge."""
    faults = []
    for node in dict.fromkeys(r.node for r in readings):
        mine = [r for r in readings if r.node == node]
        begin, end = mine[0].at, mine[-1].at
        judged = [r for r in mine if r.at >= begin + (end - begin) * WARM_UP]
        if len(judged) < 6:
            faults.append(f"{node}: {len(mine)} readings are too few to tell growth; run for longer")
            continue
        third = len(judged) // 3
        for bound in bounds:
            first, last = (min(getattr(r, bound.field) for r in part) for part in (judged[:third], judged[-third:]))
            faults += _beyond(node, bound, first, last, "in the run")
    return faults


def left_over(before: Sequence[Reading], after: Sequence[Reading], bounds: Sequence[Bound] = AT_REST) -> list[str]:
    """What is held at rest after the run and was not before."""
    earlier = {r.node: r for r in before}
    return [
        fault
        for reading in after
        for bound in bounds
        for fault in _beyond(
            reading.node,
            bound,
            getattr(earlier[reading.node], bound.field),
            getattr(reading, bound.field),
            "at rest",
        )
    ]


def _beyond(node: str, bound: Bound, first: float, last: float, when: str) -> list[str]:
    allowed = max(first * bound.share, bound.least)
    if last - first <= allowed:
        return []
    return [f"{node}: {bound.field} grew {when} from {first:g} to {last:g}; at most {first + allowed:g} is allowed"]
