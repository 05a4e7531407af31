"""Cgroups that no map knows yet, below a place where workloads' cgroups come and go. Pure.

A unit that restarts gets a new cgroup, and its first connections may come before any map can have its id. So below the
parents of workloads' cgroups the kernel is told whom it *need not* ask about: children known to be nobody's. Any other
child's connections to the mesh go to the resolver, who names their cgroup. Nothing depends on who is faster, and what
does not go to the mesh is never touched.
"""

from collections.abc import Iterable, Iterator

from redirect.desired import Capture, Desired, Parent
from redirect.names import INBOUND, MESH, PASSED_UNITS, UNKNOWN, guarded, known
from redirect.phrases import rule, towards, towards_local_ports
from redirect.presence import PRESENT
from redirect.ruleset import (
    Chain,
    Code,
    Count,
    Key,
    Member,
    Redirect,
    Rule,
    Set,
    Statement,
    Verdict,
    cgroup,
    number_element,
)

_HELD, _PASSED = "unknown cgroup", "passed, nobody names it"


def parent_sets(parents: Iterable[Parent]) -> tuple[Set, ...]:
    """The parents of each level, and their children that are nobody's. The root has no number: all are below it."""
    found: dict[str, set[bytes]] = {}
    for parent in parents:
        children = found.setdefault(known(parent.level + 1), set())
        children.update(number_element(Key.CGROUP, child) for child in parent.children)
        if parent.level:
            found.setdefault(guarded(parent.level), set()).add(number_element(Key.CGROUP, parent.number))
    return tuple(Set(name, Key.CGROUP, frozenset(elements)) for name, elements in sorted(found.items()))


def levels(parents: Iterable[Parent]) -> frozenset[int]:
    """The levels at which a cgroup can be unknown."""
    return frozenset(parent.level + 1 for parent in parents)


def ask(level: int) -> Rule:
    """Leads to the chain of the unknown."""
    return rule(*_new(level), Verdict(Code.JUMP, UNKNOWN), comment=_HELD)


def _new(level: int) -> tuple[Statement, ...]:
    """Who has no cgroup at this level, but sits higher up, is not unknown."""
    above = (Member((cgroup(level - 1),), guarded(level - 1)),) if level > 1 else ()
    return *above, Member((cgroup(level),), known(level), inside=False)


def unknown(port: int, captures: Iterable[Capture]) -> Chain:
    """To the resolver's port what goes to the mesh; the rest goes back to where it came from. So does all of it while
    the agent is away, if every workload that it could be of would be let pass then."""
    if_there = (PRESENT,) if _may_pass(captures) else ()
    take: tuple[Statement, ...] = (*if_there, Count(), Redirect(port))
    return Chain(UNKNOWN, (*towards(MESH, *take, comment=_HELD), towards_local_ports(*take, comment=_HELD)))


def let_by(desired: Desired) -> tuple[Rule, ...]:
    """Behind all that could recognise a connection: an unknown cgroup's that has come so far passes for want of an
    agent, and is counted. Nothing where none may."""
    if not _may_pass(desired.captures):
        return ()
    there = Verdict(Code.GOTO, PASSED_UNITS)
    return tuple(rule(*_new(level), there) for level in sorted(levels(desired.asked), reverse=True))


def passed_units(desired: Desired) -> Iterator[Chain]:
    """Where that leads to."""
    if desired.asked and _may_pass(desired.captures):
        then = Count(), Verdict(Code.GOTO, INBOUND)
        counted = (*towards(MESH, *then, comment=_PASSED), towards_local_ports(*then, comment=_PASSED))
        yield Chain(PASSED_UNITS, (*counted, rule(Verdict(Code.GOTO, INBOUND))))


def _may_pass(captures: Iterable[Capture]) -> bool:
    units = [capture for capture in captures if capture.recognise.cgroup is not None]
    return bool(units) and all(unit.open for unit in units)
