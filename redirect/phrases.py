"""Rows of statements that more than one chain says. Pure."""

from collections.abc import Mapping

from redirect.desired import Desired, Marks
from redirect.names import SPARED, TRIAL
from redirect.ruleset import (
    DADDR4,
    DADDR6,
    DADDR_TYPE,
    DPORT,
    FLAGS,
    IPV4,
    IPV6,
    L4PROTO,
    LOCAL,
    MARK,
    NFPROTO,
    SKUID,
    SYN,
    TCP,
    TCP_FLAGS,
    Code,
    Key,
    Match,
    Member,
    Rule,
    Statement,
    Verdict,
)


def rule(*statements: Statement, comment: str = "") -> Rule:
    """The statements as a rule."""
    return Rule(statements, comment)


IS_TCP = Match(L4PROTO, TCP)
OVER = Member((L4PROTO,), TRIAL, inside=False)
"""A trial is."""
NOT_TCP = rule(Match(L4PROTO, TCP, equal=False), Verdict(Code.RETURN))


def head(desired: Desired) -> tuple[Rule, ...]:
    """What is left alone: all but TCP, everything when a trial is over, connections older than the table, and what must
    work when we do not.

    The kernel begins to track connections when the table comes. The next packet of an old one is new to it, and a rule
    that took it would break the connection; only what opens one is taken.
    """
    accept = Verdict(Code.ACCEPT)
    over = rule(OVER, Verdict(Code.RETURN), comment="not confirmed in time")
    logins = rule(
        IS_TCP, Member((DPORT,), "login-ports"), Match(DADDR_TYPE, LOCAL), accept, comment="people log in there"
    )
    return (
        NOT_TCP,
        *((over,) if desired.until is not None else ()),
        rule(IS_TCP, Match(TCP_FLAGS, SYN, FLAGS, equal=False), Verdict(Code.RETURN), comment="older than we"),
        rule(IS_TCP, Member((DPORT,), "never"), accept),
        *((logins,) if desired.login_ports else ()),
        *(towards(SPARED, accept, comment="the centre") if desired.spared else ()),
    )


def agents_own(marks: Marks) -> tuple[Rule, ...]:
    """What the agent sends is left alone. A mark alone exempts nobody: containers may set marks, but not our uid."""
    return tuple(
        rule(Match(MARK, mark, marks.mask), Member((SKUID,), "agents"), Verdict(Code.ACCEPT), comment="the agent's own")
        for mark in (marks.agent, marks.spoof)
    )


def towards(names: Mapping[Key, str], *statements: Statement, comment: str) -> tuple[Rule, ...]:
    """Rules for connections whose destination is in the IPv4 or the IPv6 set."""
    v4, v6 = names[Key.ENDPOINT4], names[Key.ENDPOINT6]
    return (
        rule(Match(NFPROTO, IPV4), IS_TCP, Member((DADDR4, DPORT), v4), *statements, comment=comment),
        rule(Match(NFPROTO, IPV6), IS_TCP, Member((DADDR6, DPORT), v6), *statements, comment=comment),
    )


def towards_local_ports(*statements: Statement, comment: str) -> Rule:
    """A rule for connections to any address of this machine at a port that a workload of its address serves."""
    local = Match(DADDR_TYPE, LOCAL)
    return rule(IS_TCP, Member((DPORT,), "local-ports"), local, *statements, comment=comment)
