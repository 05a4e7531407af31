"""Who lives behind the bridges of container engines. Values."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Station = tuple[str, str]
"""An address, and the card (link-layer address) that has it."""


@dataclass(frozen=True, slots=True)
class Tenants:
    """The stations of running containers: those of each that is a workload, by its place (`Match.netns`), and those of
    `others`, which are nobody's. `resting` are the places of workloads that do not run: they have no namespace.
    `serves` are the ports that are written on each workload, running or not, by its place."""

    places: Mapping[str, frozenset[Station]] = field(default_factory=dict)
    others: frozenset[Station] = frozenset()
    resting: frozenset[str] = frozenset()
    serves: Mapping[str, frozenset[int]] = field(default_factory=dict)
