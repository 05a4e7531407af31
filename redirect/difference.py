"""What a change of the table would do, before it is done: as lines of nft's text and in words. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from redirect.compare import compare
from redirect.desired import Desired, Recognise
from redirect.names import FROM, MESH, SERVES
from redirect.plan import plan
from redirect.render import render, show_element
from redirect.ruleset import Ruleset, Set, endpoint_sets

MOST = 20
"""Lines of words on rules, one by one; more say nothing to anybody."""


def as_text(held: Ruleset | None, desired: Desired | None) -> str:
    """The lines that go (-) and come (+), with some around them; empty when none do."""
    from difflib import unified_diff  # only for those who ask

    old = render(_settled(held)).splitlines() if held else []
    new = render(_settled(plan(desired))).splitlines() if desired else []
    return "\n".join(unified_diff(old, new, "in the kernel", "wanted", lineterm=""))


def _settled(ruleset: Ruleset) -> Ruleset:
    """Without what differs by itself: the kernel's order, and how long a trial has to go."""
    return replace(
        ruleset,
        sets=tuple(replace(s, seconds=None) for s in sorted(ruleset.sets, key=lambda s: s.name)),
        maps=tuple(sorted(ruleset.maps, key=lambda m: m.name)),
        chains=tuple(sorted(ruleset.chains, key=lambda c: c.name)),
    )


def in_words(held: Ruleset | None, desired: Desired | None) -> list[str]:
    """One line for each workload, address and rule that changes."""
    lines = [*_workloads(held, desired), *_addresses(held, desired)]
    rules = compare(plan(desired), held) if held and desired else []
    if not lines and rules:
        # The kernel holds something else than what was put there.
        return rules[:MOST] + ([f"and {len(rules) - MOST} more"] if len(rules) > MOST else [])
    return lines


def _workloads(held: Ruleset | None, desired: Desired | None) -> Iterator[str]:
    before = {c.name.removeprefix(FROM) for c in held.chains if c.name.startswith(FROM)} if held else set[str]()
    captures = {c.workload: c for c in desired.captures} if desired else {}
    for name, capture in captures.items():
        if name not in before:
            yield f"{name}: what {_who(capture.recognise)} sends to the mesh goes to the agent, port {capture.port}"
    for name in sorted(before - captures.keys()):
        yield f"{name}: is not captured any more"


def _who(recognise: Recognise) -> str:
    match recognise:
        case Recognise(uid=int(uid)):
            return f"uid {uid}"
        case Recognise(cgroup=(_, number)):
            return f"cgroup {number}"
        case Recognise(address=str(address)):
            return address
    return "this namespace"


def _addresses(held: Ruleset | None, desired: Desired | None) -> Iterator[str]:
    before = {s.name: s.elements for s in held.sets} if held else {}
    new = gone = 0
    for group in endpoint_sets(MESH, desired.mesh if desired else ()):
        has = before.get(group.name, frozenset())
        new, gone = new + len(group.elements - has), gone + len(has - group.elements)
    if new or gone:
        yield f"addresses of the mesh: {new} more, {gone} fewer"
    for group in endpoint_sets(SERVES, (pair for c in desired.captures for pair in c.serves) if desired else ()):
        has = before.get(group.name, frozenset())
        for element in sorted(group.elements - has):
            yield f"{_pair(group, element)}: plaintext that arrives there goes to the agent"
        for element in sorted(has - group.elements):
            yield f"{_pair(group, element)}: plaintext that arrives there goes to the program itself"


def _pair(group: Set, element: bytes) -> str:
    return show_element(group, element).replace(" . ", " port ")
