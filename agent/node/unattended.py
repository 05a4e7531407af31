"""What passed while the agent was away: the kernel counts it, and whoever comes back tells. Pure.

Only workloads with `failMode: open` can have any. The kernel's count goes on from where it was for as long as the table
stands; what was told of it is on disk, so that it is told once.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from redirect.counts import Counts


class Told(msgspec.Struct, frozen=True):
    """The counts that were told of, by workload, and the boot they belong to: the next one begins at zero."""

    boot: str = ""
    passed: dict[str, int] = {}


def untold(told: Told, now: str, counts: Mapping[str, "Counts"]) -> tuple[dict[str, int], Told]:
    """Connections that passed since they were last told of, by workload; and what has been told then. A count below
    the one before is of a new table."""
    known = told.passed if told.boot == now else {}
    passed = {name: count.passed for name, count in sorted(counts.items()) if count.passed}
    fresh = {name: n - known.get(name, 0) if n >= known.get(name, 0) else n for name, n in passed.items()}
    return {name: n for name, n in fresh.items() if n}, Told(now, passed)
