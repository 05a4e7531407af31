"""What all sources see -> what the node reports. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass

from agent.discovery.found import SOURCES, Found, Seen
from ca.resources.metadata import Key
from ca.resources.workload import Match


@dataclass(frozen=True, slots=True)
class Merged:
    """`found` by key, a sentence for each that lost to another, and the sources of which that is all."""

    found: Mapping[Key, Found]
    conflicts: tuple[str, ...] = ()
    whole: frozenset[str] = frozenset()


def merge(seen: Mapping[str, Seen]) -> Merged:
    """Of two with the same name, or recognised by the same thing, the first in the order of SOURCES counts."""
    found: dict[Key, Found] = {}
    signs: dict[Match, Found] = {}
    conflicts = []
    for source in SOURCES:
        for new in seen.get(source, Seen()).found:
            sign = _plain(new.match)
            other = found.get(new.key) or signs.get(sign)
            if other is not None:
                same = "has the same name as" if new.key == other.key else "is recognised by the same as"
                conflicts.append(
                    f"{new.place}: workload {new.title} {same} {other.title} of {other.place}, which goes first"
                )
                continue
            found[new.key] = signs[sign] = new
    return Merged(found, tuple(conflicts), frozenset(name for name, s in seen.items() if s.whole))


def _plain(match: Match) -> Match:
    return Match(cgroup=match.cgroup.strip("/")) if match.cgroup is not None else match
