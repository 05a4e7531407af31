"""Whose connection it is: the maps from a uid, cgroup or address to the chain of the workload. Pure."""

from collections.abc import Iterable

from redirect.desired import Capture, Parent
from redirect.names import BY_ADDRESS, FROM
from redirect.phrases import rule
from redirect.ruleset import (
    IPV4,
    IPV6,
    NFPROTO,
    SADDR4,
    SADDR6,
    SKUID,
    Code,
    Dispatch,
    Key,
    Match,
    Rule,
    Verdict,
    VerdictMap,
    address_element,
    cgroup,
    number_element,
)
from redirect.unknown import ask, levels


def dispatch_maps(captures: Iterable[Capture]) -> tuple[VerdictMap, ...]:
    """One map for each way of telling workloads apart that is in use, the most specific first."""
    found: dict[tuple[int, str, Key], dict[bytes, Verdict]] = {}
    whole: list[str] = []
    for capture in captures:
        recognise, workload = capture.recognise, capture.workload
        if recognise.everything:
            whole.append(workload)
            if len(whole) > 1:
                raise ValueError(f"{whole[0]} and {workload} both claim the whole network namespace")
            continue
        if recognise.cgroup is not None:
            level, number = recognise.cgroup
            # A deeper cgroup is the closer description.
            place = (-level, f"by-cgroup-{level}", Key.CGROUP)
            element = number_element(Key.CGROUP, number)
        elif recognise.address is not None:
            key, element = address_element(recognise.address)
            place = (1, BY_ADDRESS[key], key)
        elif recognise.uid is not None:
            place = (2, "by-uid", Key.UID)
            element = number_element(Key.UID, recognise.uid)
        else:
            raise ValueError(f"{workload} has nothing to be recognised by")
        elements = found.setdefault(place, {})
        if element in elements:
            other = elements[element].chain.removeprefix(FROM)
            raise ValueError(f"{other} and {workload} are both recognised by {place[2].show(element)}")
        elements[element] = Verdict(Code.GOTO, FROM + workload)
    return tuple(
        VerdictMap(place[1], place[2], frozenset(elements.items()))
        for place, elements in sorted(found.items(), key=_rank)
    )


def _rank(item: tuple[tuple[int, str, Key], object]) -> tuple[int, str]:
    return item[0][0], item[0][1]


def dispatch(maps: Iterable[VerdictMap], parents: Iterable[Parent] = ()) -> Iterable[Rule]:
    """A rule for each map, the closest description first; an unknown cgroup is asked about before a map can take it for
    something less close."""
    cgroups = {_level(m): m for m in maps if m.key is Key.CGROUP}
    unknown = levels(parents)
    for level in sorted(cgroups.keys() | unknown, reverse=True):
        if level in cgroups:
            yield rule(Dispatch(cgroup(level), cgroups[level].name))
        if level in unknown:
            yield ask(level)
    for each in maps:
        match each.key:
            case Key.ADDRESS4:
                yield rule(Match(NFPROTO, IPV4), Dispatch(SADDR4, each.name))
            case Key.ADDRESS6:
                yield rule(Match(NFPROTO, IPV6), Dispatch(SADDR6, each.name))
            case Key.UID:
                yield rule(Dispatch(SKUID, each.name))


def _level(cgroups: VerdictMap) -> int:
    return int(cgroups.name.rpartition("-")[2])
