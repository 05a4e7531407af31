"""Desired against what the kernel holds: the differences, in words. Pure; none means that the table is as planned."""

from collections.abc import Iterator, Mapping
from typing import TypeVar

from redirect.render import render_base, render_rule, render_statement, show_element
from redirect.ruleset import Chain, Group, Ruleset, Set, VerdictMap

_T = TypeVar("_T", Set, VerdictMap, Chain)
NAMED = 3
"""Elements of one set that are named; the rest is counted."""


def compare(desired: Ruleset, held: Ruleset | None) -> list[str]:
    """One line for each difference."""
    if held is None:
        return [f"table inet {desired.table} is missing"]
    return [
        *_named("set", {s.name: s for s in desired.sets}, {s.name: s for s in held.sets}),
        *_named("map", {m.name: m for m in desired.maps}, {m.name: m for m in held.maps}),
        *_named("chain", {c.name: c for c in desired.chains}, {c.name: c for c in held.chains}),
    ]


def _named(kind: str, desired: Mapping[str, _T], held: Mapping[str, _T]) -> Iterator[str]:
    for name, wanted in desired.items():
        if name not in held:
            yield f"{kind} {name} is missing"
        elif wanted != held[name]:
            yield from _differences(wanted, held[name])
    for name in held:
        if name not in desired:
            yield f"{kind} {name} is not ours"


def _differences(wanted: Set | VerdictMap | Chain, found: Set | VerdictMap | Chain) -> Iterator[str]:
    match wanted, found:
        case Set(), Set():
            yield from _elements(wanted, set(wanted.elements), set(found.elements), "set", found)
        case VerdictMap(), VerdictMap():
            wants, has = dict(wanted.elements), dict(found.elements)
            yield from _elements(wanted, set(wants), set(has), "map", found)
            for element in sorted(wants.keys() & has.keys()):
                if wants[element] != has[element]:
                    what, should = render_statement(has[element]), render_statement(wants[element])
                    yield f"map {wanted.name} sends {show_element(wanted, element)} to {what}, should be {should}"
        case Chain(), Chain():
            yield from _chain(wanted, found)


def _elements(wanted: Group, wants: set[bytes], has: set[bytes], kind: str, found: Group) -> Iterator[str]:
    if wanted.key != found.key:
        yield f"{kind} {wanted.name} is of another type"
        return
    for verb, elements in (("lacks", wants - has), ("should not have", has - wants)):
        if elements:
            names = ", ".join(show_element(wanted, e) for e in sorted(elements)[:NAMED])
            more = f" and {len(elements) - NAMED} more" if len(elements) > NAMED else ""
            yield f"{kind} {wanted.name} {verb} {names}{more}"


def _chain(wanted: Chain, found: Chain) -> Iterator[str]:
    if wanted.base != found.base:
        is_, should = (render_base(chain.base) if chain.base else "no hook" for chain in (found, wanted))
        yield f"chain {wanted.name} is: {is_} should be: {should}"
    for number, rule in enumerate(wanted.rules):
        if number >= len(found.rules):
            yield f"chain {wanted.name} lacks rule {number + 1}: {render_rule(rule)}"
        elif rule != found.rules[number]:
            is_, should = render_rule(found.rules[number]), render_rule(rule)
            yield f"chain {wanted.name}, rule {number + 1} is: {is_}; should be: {should}"
    for number, rule in enumerate(found.rules[len(wanted.rules) :], len(wanted.rules) + 1):
        yield f"chain {wanted.name} has a rule that is not ours, rule {number}: {render_rule(rule)}"
