"""What settings leave alone although it would be captured: skips on the way out, openings on the way in. Pure.

Each workload has sets of its own, so that a rule says in one look-up what it leaves alone, and a listing shows whose.
What is skipped on its way out may still be meant for a workload of this very machine, and is judged there as anybody's
plaintext would be.
"""

from collections.abc import Iterator

from redirect.desired import Capture, Opening, Skip
from redirect.names import INBOUND, INTO, PASSED, SKIPPED
from redirect.phrases import IS_TCP, rule, towards
from redirect.presence import ABSENT
from redirect.ruleset import (
    DADDR4,
    DADDR6,
    DADDR_TYPE,
    DPORT,
    IPV4,
    IPV6,
    LOCAL,
    NFPROTO,
    SADDR4,
    SADDR6,
    SKUID,
    Chain,
    Code,
    Count,
    Field,
    Key,
    Match,
    Member,
    Redirect,
    Rule,
    Set,
    Statement,
    Verdict,
    endpoint_sets,
    network_elements,
    numbers,
)

_FAMILIES = ((Key.NETWORK4, IPV4, DADDR4, SADDR4, "4"), (Key.NETWORK6, IPV6, DADDR6, SADDR6, "6"))


def skip_sets(capture: Capture) -> Iterator[Set]:
    """What the rules about this workload's skips and openings look into; none where there are none."""
    skip, opening, workload = capture.skip, capture.opening, capture.workload
    yield from _sets("skip", workload, skip.ports, skip.networks, skip.uids)
    if _own_way_in(capture):
        yield from endpoint_sets(_serves(workload), capture.serves)
        if capture.shares_address:
            yield numbers(f"into/{workload}", Key.PORT, (port for _, port in capture.serves))
    if opening != Opening():
        yield numbers(f"open/{workload}", Key.PORT, opening.everyone)
        yield from _sets("open-to", workload, opening.ports, opening.networks, opening.uids)
    if capture.open_ports:
        yield numbers(f"unattended/{workload}", Key.PORT, capture.open_ports)


def _own_way_in(capture: Capture) -> bool:
    return capture.opening != Opening() or bool(capture.open_ports)


def _sets(
    word: str, workload: str, ports: tuple[int, ...], networks: tuple[str, ...], uids: tuple[int, ...]
) -> Iterator[Set]:
    if ports:
        yield numbers(f"{word}/{workload}", Key.PORT, ports)
    elements = network_elements(networks)
    for key, _, _, _, version in _FAMILIES:
        if elements[key]:
            yield Set(f"{word}{version}/{workload}", key, elements[key])
    if uids:
        yield numbers(f"{word}-uids/{workload}", Key.UID, uids)


def skips(capture: Capture) -> Iterator[Rule]:
    """The rules at the head of the workload's own chain."""
    then = Count(), Verdict(Code.GOTO, INBOUND)
    if capture.skip.ports:
        ports = Member((DPORT,), f"skip/{capture.workload}")
        yield rule(IS_TCP, ports, *then, comment=SKIPPED)
    yield from skips_by_address(capture, then, SKIPPED)


def skips_by_address(capture: Capture, then: tuple[Statement, ...], comment: str) -> Iterator[Rule]:
    """The rules for what is skipped by where it goes or by who sends it, of whatever protocol."""
    yield from _whose("skip", capture.workload, capture.skip, then, comment)


def _whose(
    word: str,
    workload: str,
    skip: Skip | Opening,
    then: tuple[Statement, ...],
    comment: str = SKIPPED,
    *,
    source: bool = False,
) -> Iterator[Rule]:
    elements = network_elements(skip.networks)
    for key, family, destination, caller, version in _FAMILIES:
        if elements[key]:
            field: Field = caller if source else destination
            yield rule(Match(NFPROTO, family), Member((field,), f"{word}{version}/{workload}"), *then, comment=comment)
    if skip.uids:
        yield rule(Member((SKUID,), f"{word}-uids/{workload}"), *then, comment=comment)


def into(capture: Capture) -> Iterator[Rule]:
    """The rules at the head of the inbound chain that lead to the workload's own."""
    if not _own_way_in(capture):
        return
    there, workload = Verdict(Code.GOTO, INTO + capture.workload), capture.workload
    yield from towards(_serves(workload), there, comment="")
    if capture.shares_address:
        yield rule(IS_TCP, Member((DPORT,), f"into/{workload}"), Match(DADDR_TYPE, LOCAL), there)


def openings(capture: Capture, inbound_port: int) -> Iterator[Chain]:
    """The chain of a workload with openings: what is left alone, always or while the agent is away, and all the rest to
    the agent."""
    opening, workload = capture.opening, capture.workload
    if not _own_way_in(capture):
        return
    leave = Count(), Verdict(Code.ACCEPT)
    rules = []
    if opening != Opening():
        rules.append(rule(IS_TCP, Member((DPORT,), f"open/{workload}"), *leave, comment=SKIPPED))
    if capture.open_ports:
        unattended = Member((DPORT,), f"unattended/{workload}")
        rules.append(rule(IS_TCP, unattended, ABSENT, *leave, comment=PASSED))
    if opening.ports:
        # In front of whose: a port that is open to nobody must not be open to some.
        closed = Member((DPORT,), f"open-to/{workload}", inside=False)
        rules.append(rule(IS_TCP, closed, *_taken(inbound_port), comment="plaintext in"))
        rules += _whose("open-to", workload, opening, leave, source=True)
    rules.append(rule(IS_TCP, *_taken(inbound_port), comment="plaintext in"))
    yield Chain(INTO + workload, tuple(rules))


def _taken(port: int) -> tuple[Statement, ...]:
    return Count(), Redirect(port)


def _serves(workload: str) -> dict[Key, str]:
    return {Key.ENDPOINT4: f"into4/{workload}", Key.ENDPOINT6: f"into6/{workload}"}
