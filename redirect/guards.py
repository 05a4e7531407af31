"""The chains that refuse and bring back: arrivals at our ports, answers to borrowed addresses. Pure.

Every packet of the machine comes by these two hooks, so each asks what most packets answer with no, and asks it once.
"""

from collections.abc import Iterator

from redirect.desired import Desired, Marks
from redirect.names import BORROW, BORROWED, GUARD, KEPT
from redirect.phrases import IS_TCP, rule
from redirect.ruleset import (
    CONFIRMED,
    CT_DIRECTION,
    CT_MARK,
    CT_STATUS,
    DNAT,
    DPORT,
    IIF,
    LOOPBACK,
    MARK,
    ORIGINAL,
    REPLY,
    SKUID,
    SOCKET_MARK,
    Base,
    Chain,
    Code,
    Hook,
    Match,
    Member,
    PutMark,
    Reset,
    Verdict,
)


def guard(desired: Desired) -> Iterator[Chain]:
    """Who may arrive at our capture ports: redirected connections only, and at no socket but the agent's.

    The second rule about them is for the time when the agent is away: another process could bind the port then and be
    handed plaintext, but it cannot mark its socket. Where nothing listens there is no socket to ask and TCP itself
    refuses. All packets towards these ports are asked, not just the first, so that a SYN cookie is no way in either.

    And nobody from outside may meddle with a borrowed connection: a caller who happens to get the port that the agent
    has is taken for it, past all that captures, and waits until that connection is over.
    """
    marks = desired.marks
    kept = (Match(CT_DIRECTION, ORIGINAL), IS_TCP, Member((DPORT,), "kept-ports"))
    outside = (Match(IIF, LOOPBACK, equal=False), Match(CT_DIRECTION, ORIGINAL))
    borrowed = Match(CT_MARK, marks.spoof, marks.mask)
    yield Chain(
        KEPT,
        (
            rule(IS_TCP, Match(CT_STATUS, 0, DNAT), Reset(), comment="dialled directly"),
            rule(IS_TCP, Match(SOCKET_MARK, marks.agent, marks.mask, equal=False), Reset(), comment="not the agent's"),
        ),
    )
    yield Chain(
        GUARD,
        (
            rule(*kept, Verdict(Code.GOTO, KEPT)),
            rule(*outside, borrowed, Verdict(Code.DROP), comment="the agent's own dial"),
        ),
        Base("filter", Hook.INPUT, 0),
    )


def borrow(marks: Marks) -> Iterator[Chain]:
    """Connections that the agent makes from a caller's address: what the local application answers must stay here.

    The connection remembers the mark, and the answers get it back; policy routing sends what is marked to loopback.

    The port that the agent gets may be one from which that very caller has a connection to the same place: the kernel
    sees no socket of that here. Such a SYN is taken for the caller's, and would lead its answers astray; so it waits,
    as TCP sends it again, until the caller's connection is over.
    """
    agents = (Match(CT_DIRECTION, ORIGINAL), Match(MARK, marks.spoof, marks.mask), Member((SKUID,), "agents"))
    somebodys = (Match(CT_STATUS, CONFIRMED, CONFIRMED), Match(CT_MARK, marks.spoof, marks.mask, equal=False))
    yield Chain(
        BORROWED,
        (
            rule(*somebodys, Verdict(Code.DROP), comment="the caller's own connection"),
            rule(PutMark(marks.spoof, connection=True), comment="from a borrowed address"),
        ),
    )
    yield Chain(
        BORROW,
        (
            rule(
                Match(CT_DIRECTION, REPLY),
                Match(CT_MARK, marks.spoof, marks.mask),
                PutMark(marks.spoof),
                comment="answers to a borrowed address",
            ),
            rule(*agents, Verdict(Code.GOTO, BORROWED)),
        ),
        Base("route", Hook.OUTPUT, -150),
    )
