"""What passed while the agent was away: the kernel counts it, and whoever comes back tells. Pure.

Only workloads with `failMode: open` can have any, and callers that nobody could name where all of them could only have
been such. The kernel's count goes on from where it was for as long as the table stands; what was told of it is on disk,
so that it is told once.
"""

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from redirect.counts import Counters

UNITS, CONTAINERS = "new units", "new containers"
"""Whose connections are no single workload's; the names of workloads have a slash."""


class Told(msgspec.Struct, frozen=True):
    """The counts that were told of, by workload (or UNITS, CONTAINERS), and the boot they belong to: the next one
    begins at zero."""

    boot: str = ""
    passed: dict[str, int] = {}


def passed(counters: "Counters") -> dict[str, int]:
    """Connections that passed, by whose they are."""
    found = {name: count.passed for name, count in counters.workloads.items()}
    return {**found, UNITS: counters.unnamed.units, CONTAINERS: counters.unnamed.containers}


def untold(told: Told, boot: str, past: "Counters", now: "Counters") -> tuple[dict[str, int], Told]:
    """Connections that passed since they were last told of, by whose they are; and what has been told then. `past` is
    what tables had counted when the agent came back to them, and a count below the one before is of a new table. `now`
    is where counting goes on: a workload's rules may have gone meanwhile, and its count with them."""
    known = told.passed if told.boot == boot else {}
    before, after = passed(past), passed(now)
    fresh = {name: n - known.get(name, 0) if n >= known.get(name, 0) else n for name, n in sorted(before.items())}
    rest = {name: min(n, after.get(name, n)) for name, n in known.items()}
    standing = {**rest, **{name: after.get(name, 0) for name in before}}
    return {name: n for name, n in fresh.items() if n}, Told(boot, {name: n for name, n in standing.items() if n})
