"""What is to be captured -> the ruleset that does it. Pure.

The table in the host's network namespace, and the one inside a workload's own, come from the same function; in the
latter every connection belongs to the one workload (`Recognise.everything`).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from redirect.ruleset import (
    CT_DIRECTION,
    CT_MARK,
    CT_STATUS,
    DADDR4,
    DADDR6,
    DADDR_TYPE,
    DNAT,
    DPORT,
    FLAGS,
    IPV4,
    IPV6,
    L4PROTO,
    LOCAL,
    MARK,
    NFPROTO,
    ORIGINAL,
    REPLY,
    SADDR4,
    SADDR6,
    SKUID,
    SOCKET_MARK,
    SYN,
    TCP,
    TCP_FLAGS,
    Base,
    Chain,
    Code,
    Count,
    Dispatch,
    Hook,
    Key,
    Match,
    Member,
    PutMark,
    Redirect,
    Reset,
    Rule,
    Ruleset,
    Set,
    Statement,
    Verdict,
    VerdictMap,
    address_element,
    cgroup,
    endpoint_element,
    number_element,
)

TABLE = "culvert"
"""The one table we own, family inet; `nft delete table inet culvert` removes capture."""


@dataclass(frozen=True, slots=True)
class Marks:
    """Packet marks: `agent` on what the agent sends, `spoof` on what it sends from a foreign source address."""

    agent: int = 0xC0170001
    spoof: int = 0xC0170002
    mask: int = 0xFFFF000F
    route_table: int = 49175


@dataclass(frozen=True, slots=True)
class Recognise:
    """How a workload's own connections are told: exactly one of the fields is set.

    `cgroup` is (level, id): its depth below the cgroup v2 mount (1 for a child of the root) and the inode number of its
    directory. `everything` means the whole network namespace is the workload's.
    """

    uid: int | None = None
    cgroup: tuple[int, int] | None = None
    address: str | None = None
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Capture:
    """One enrolled local workload. `workload` is namespace/name; `port` is the outbound capture port kept for it;
    `serves` are the (address, port) pairs at which it accepts connections; `shares_address` says that its address is
    its node's, so that the same ports on the node's other addresses (loopback too) are its own as well."""

    workload: str
    recognise: Recognise
    port: int
    serves: tuple[tuple[str, int], ...] = ()
    shares_address: bool = False


@dataclass(frozen=True, slots=True)
class Desired:
    """All that the table depends on. `mesh` are the (address, port) pairs of every enrolled workload of the mesh;
    `agent_uids` the uids whose marked packets are exempt; `inbound_port` where arriving plaintext goes;
    `capture_all` is true for the egress modes observe and registry-only."""

    captures: tuple[Capture, ...] = ()
    mesh: frozenset[tuple[str, int]] = frozenset()
    agent_uids: tuple[int, ...] = (0,)
    never: frozenset[int] = frozenset({22, 15000, 15001, 15006, 15008, 15012, 15020, 15021, 15053})
    inbound_port: int = 15006
    capture_all: bool = False
    marks: Marks = field(default_factory=Marks)


OUT, PRE, INBOUND, GUARD, BORROW = "out", "pre", "inbound", "guard", "borrow"
FROM = "from/"
"""Chains of workloads are called from/NAMESPACE/NAME."""
CAPTURED, BYPASSED = "captured", "bypassed"
"""Comments of the rules whose counters are connections captured and let through."""

MESH = {Key.ENDPOINT4: "mesh4", Key.ENDPOINT6: "mesh6"}
SERVES = {Key.ENDPOINT4: "serves4", Key.ENDPOINT6: "serves6"}
_BY_ADDRESS = {Key.ADDRESS4: "by-address4", Key.ADDRESS6: "by-address6"}


def plan(desired: Desired) -> Ruleset:
    """The table. A ValueError names two captures that contradict each other."""
    ports = Counter(c.port for c in desired.captures)
    if doubled := sorted(port for port, times in ports.items() if times > 1):
        raise ValueError(f"capture port {doubled[0]} is kept for several workloads: the port is the identity")
    maps = _dispatch_maps(desired.captures)
    return Ruleset(
        TABLE,
        sets=(
            *endpoint_sets(MESH, desired.mesh),
            *endpoint_sets(SERVES, (pair for c in desired.captures for pair in c.serves)),
            _numbers("local-ports", Key.PORT, (p for c in desired.captures if c.shares_address for _, p in c.serves)),
            _numbers("never", Key.PORT, desired.never),
            _numbers("kept-ports", Key.PORT, (desired.inbound_port, *ports)),
            _numbers("agents", Key.UID, desired.agent_uids),
        ),
        maps=maps,
        chains=(
            _inbound(desired),
            *(_workload(capture, desired) for capture in desired.captures),
            _out(desired, maps),
            Chain(PRE, (*_head(), _rule(Verdict(Code.GOTO, INBOUND))), Base("nat", Hook.PREROUTING, -100)),
            _guard(desired),
            _borrow(desired.marks),
        ),
    )


def endpoint_sets(names: Mapping[Key, str], pairs: Iterable[tuple[str, int]]) -> tuple[Set, ...]:
    """The pairs as two sets, one for each IP version."""
    found: dict[Key, set[bytes]] = {key: set() for key in names}
    for address, port in pairs:
        key, element = endpoint_element(address, port)
        found[key].add(element)
    return tuple(Set(names[key], key, frozenset(elements)) for key, elements in found.items())


def _numbers(name: str, key: Key, values: Iterable[int]) -> Set:
    return Set(name, key, frozenset(number_element(key, value) for value in values))


def _rule(*statements: Statement, comment: str = "") -> Rule:
    return Rule(statements, comment)


_IS_TCP = Match(L4PROTO, TCP)
_NOT_TCP = _rule(Match(L4PROTO, TCP, equal=False), Verdict(Code.RETURN))


def _head() -> tuple[Rule, ...]:
    """What is left alone: all but TCP, connections older than the table, and the ports that must work when we do not.

    The kernel begins to track connections when the table comes. The next packet of an old one is new to it, and a rule
    that took it would break the connection; only what opens one is taken.
    """
    return (
        _NOT_TCP,
        _rule(_IS_TCP, Match(TCP_FLAGS, SYN, FLAGS, equal=False), Verdict(Code.RETURN), comment="older than we"),
        _rule(_IS_TCP, Member((DPORT,), "never"), Verdict(Code.ACCEPT)),
    )


def _towards(names: Mapping[Key, str], *statements: Statement, comment: str) -> tuple[Rule, ...]:
    """Rules for connections whose destination is in the IPv4 or the IPv6 set."""
    v4, v6 = names[Key.ENDPOINT4], names[Key.ENDPOINT6]
    return (
        _rule(Match(NFPROTO, IPV4), _IS_TCP, Member((DADDR4, DPORT), v4), *statements, comment=comment),
        _rule(Match(NFPROTO, IPV6), _IS_TCP, Member((DADDR6, DPORT), v6), *statements, comment=comment),
    )


def _towards_local_ports(*statements: Statement, comment: str) -> Rule:
    local = Match(DADDR_TYPE, LOCAL)
    return _rule(_IS_TCP, Member((DPORT,), "local-ports"), local, *statements, comment=comment)


def _out(desired: Desired, maps: tuple[VerdictMap, ...]) -> Chain:
    """Connections made on this machine. A mark alone exempts nobody: containers may set marks, but not our uid."""
    marks = desired.marks
    own = (
        _rule(
            Match(MARK, mark, marks.mask), Member((SKUID,), "agents"), Verdict(Code.ACCEPT), comment="the agent's own"
        )
        for mark in (marks.agent, marks.spoof)
    )
    everything = (_rule(Verdict(Code.GOTO, FROM + c.workload)) for c in desired.captures if c.recognise.everything)
    return Chain(
        OUT,
        (*_head(), *own, *_dispatch(maps), *everything, _rule(Verdict(Code.GOTO, INBOUND))),
        Base("nat", Hook.OUTPUT, -100),
    )


def _dispatch_maps(captures: Iterable[Capture]) -> tuple[VerdictMap, ...]:
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
            place = (1, _BY_ADDRESS[key], key)
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


def _dispatch(maps: Iterable[VerdictMap]) -> Iterable[Rule]:
    for each in maps:
        match each.key:
            case Key.ADDRESS4:
                yield _rule(Match(NFPROTO, IPV4), Dispatch(SADDR4, each.name))
            case Key.ADDRESS6:
                yield _rule(Match(NFPROTO, IPV6), Dispatch(SADDR6, each.name))
            case Key.UID:
                yield _rule(Dispatch(SKUID, each.name))
            case _:
                yield _rule(Dispatch(cgroup(int(each.name.rpartition("-")[2])), each.name))


def _workload(capture: Capture, desired: Desired) -> Chain:
    """One workload's own connections. The chain is left by `goto`: nobody is recognised twice."""
    take = Count(), Redirect(capture.port)
    rules = [
        *_towards(MESH, *take, comment=CAPTURED),
        _towards_local_ports(*take, comment=CAPTURED),
    ]
    if desired.capture_all:
        rules.append(_rule(_IS_TCP, Match(DADDR_TYPE, LOCAL, equal=False), *take, comment=CAPTURED))
    rules.append(_rule(Count(), Verdict(Code.GOTO, INBOUND), comment=BYPASSED))
    return Chain(FROM + capture.workload, tuple(rules))


def _inbound(desired: Desired) -> Chain:
    """Plaintext towards a workload of ours: from afar, or from here, lest local callers walk round STRICT."""
    take = Count(), Redirect(desired.inbound_port)
    return Chain(
        INBOUND,
        (*_towards(SERVES, *take, comment="plaintext in"), _towards_local_ports(*take, comment="plaintext in")),
    )


def _guard(desired: Desired) -> Chain:
    """Who may arrive at our capture ports: redirected connections only, and at no socket but the agent's.

    The second rule is for the time when the agent is away: another process could bind the port then and be handed
    plaintext, but it cannot mark its socket. Where nothing listens there is no socket to ask and TCP itself refuses.
    All packets towards these ports are asked, not just the first, so that a SYN cookie is no way in either.
    """
    marks = desired.marks
    ours = (_IS_TCP, Member((DPORT,), "kept-ports"), Match(CT_DIRECTION, ORIGINAL))
    return Chain(
        GUARD,
        (
            _rule(*ours, Match(CT_STATUS, 0, DNAT), Reset(), comment="dialled directly"),
            _rule(*ours, Match(SOCKET_MARK, marks.agent, marks.mask, equal=False), Reset(), comment="not the agent's"),
        ),
        Base("filter", Hook.INPUT, 0),
    )


def _borrow(marks: Marks) -> Chain:
    """Connections that the agent makes from a caller's address: what the local application answers must stay here.

    The connection remembers the mark, and the answers get it back; policy routing sends what is marked to loopback.
    """
    return Chain(
        BORROW,
        (
            _rule(
                Match(CT_DIRECTION, REPLY),
                Match(CT_MARK, marks.spoof, marks.mask),
                PutMark(marks.spoof),
                comment="answers to a borrowed address",
            ),
            _rule(
                Match(CT_DIRECTION, ORIGINAL),
                Match(MARK, marks.spoof, marks.mask),
                Member((SKUID,), "agents"),
                PutMark(marks.spoof, connection=True),
                comment="from a borrowed address",
            ),
        ),
        Base("route", Hook.OUTPUT, -150),
    )
