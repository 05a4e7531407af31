"""Ruleset -> the text `nft` would print, to be read before anything is done. Pure."""

from collections.abc import Iterable, Iterator

from redirect.ruleset import (
    CT_DIRECTION,
    CT_LABEL,
    CT_STATUS,
    DADDR_TYPE,
    DPORT,
    ETHERNET,
    IIF,
    IIFTYPE,
    L4PROTO,
    LOOPBACK,
    MARK,
    NFPROTO,
    OIF,
    TCP,
    TCP_FLAGS,
    UDP,
    Base,
    Code,
    Count,
    Dispatch,
    Group,
    Hook,
    Match,
    Member,
    PutLabel,
    PutMark,
    Redirect,
    Reset,
    Rule,
    Ruleset,
    Set,
    Statement,
    Unknown,
    Verdict,
)

_NAMES = {
    L4PROTO: {TCP: "tcp", UDP: "udp"},
    NFPROTO: {2: "ipv4", 10: "ipv6"},
    DADDR_TYPE: {2: "local"},
    IIF: {LOOPBACK: '"lo"'},
    OIF: {LOOPBACK: '"lo"'},
    IIFTYPE: {ETHERNET: "ether"},
    CT_DIRECTION: {0: "original", 1: "reply"},
    TCP_FLAGS: {2: "syn"},
}
SHOWN = 1000
"""Elements of one set that are written out; a mesh can have 100,000."""


def render(ruleset: Ruleset, shown: int = SHOWN) -> str:
    """The table as `nft list table` would print it, with at most `shown` elements of a set.

    `nft -f` understands it where no cgroups are involved, which nft reads as paths and the kernel has as numbers.
    """
    return "\n".join(
        [f"table inet {ruleset.table} {{", *(f"\t{line}".rstrip() for line in _lines(ruleset, shown)), "}\n"]
    )


def _lines(ruleset: Ruleset, shown: int) -> Iterator[str]:
    groups: tuple[Group, ...] = (*ruleset.sets, *ruleset.maps)
    for group in groups:
        yield from _group(group, shown)
    for chain in ruleset.chains:
        yield f"chain {chain.name} {{"
        if chain.base:
            yield f"\t{render_base(chain.base)}"
        for rule in chain.rules:
            yield f"\t{render_rule(rule)}"
        yield "}"


def _group(group: Group, shown: int) -> Iterator[str]:
    key = group.key.text if group.key else "unknown"
    if isinstance(group, Set):
        yield f"set {group.name} {{"
        yield f"\ttype {key}"
        if group.key and (group.key.ranges or group.key.passing):
            yield f"\tflags {'interval' if group.key.ranges else 'timeout'}"
        elements = sorted(group.elements)
        lasting = f" timeout {group.seconds:.0f}s" if group.seconds is not None else ""
        texts = (show_element(group, e) + lasting for e in elements)
    else:
        yield f"map {group.name} {{"
        yield f"\ttype {key} : verdict"
        texts = (f"{show_element(group, e)} : {render_statement(v)}" for e, v in sorted(group.elements, key=_first))
    if group.elements:
        yield "\telements = {"
        yield from (f"\t\t{text}," for text, _ in zip(texts, range(shown), strict=False))
        if len(group.elements) > shown:
            yield f"\t\t... and {len(group.elements) - shown} more"
        yield "\t}"
    yield "}"


def _first(item: tuple[bytes, Verdict]) -> bytes:
    return item[0]


def show_element(group: Group, element: bytes) -> str:
    """An element as people read it."""
    return group.key.show(element) if group.key else element.hex()


def render_base(base: Base) -> str:
    """Where a base chain sits."""
    hook = Hook(base.hook).name.lower() if base.hook in tuple(Hook) else str(base.hook)
    # nft has names for some priorities, but dstnat only where destinations are first rewritten.
    names = {-150: "mangle", 0: "filter"} | ({-100: "dstnat"} if base.hook == Hook.PREROUTING else {})
    policy = "accept" if base.accepts else "drop"
    return f"type {base.type} hook {hook} priority {names.get(base.priority, base.priority)}; policy {policy};"


def render_rule(rule: Rule) -> str:
    """One rule without its table and chain."""
    comment = f' comment "{rule.comment}"' if rule.comment else ""
    return " ".join(_merged(rule.statements)) + comment


def _merged(statements: Iterable[Statement]) -> Iterator[str]:
    """Leaves out the protocol that a field of TCP or UDP implies."""
    rows = tuple(statements)
    udp = Match(L4PROTO, UDP) in rows
    for here, after in zip(rows, (*rows[1:], None), strict=True):
        if here == Match(L4PROTO, TCP) and (
            isinstance(after, Member) or (isinstance(after, Match) and after.field == TCP_FLAGS)
        ):
            continue
        if here == Match(L4PROTO, UDP) and (
            isinstance(after, Member) or (isinstance(after, Match) and after.field == DPORT)
        ):
            continue
        text = render_statement(here)
        # Both have their ports in the same place, which is all that the kernel knows of a field.
        yield text.replace("tcp dport", "udp dport") if udp else text


def render_statement(statement: Statement) -> str:
    """One statement of a rule."""
    match statement:
        case Match(field, value, mask, equal):
            if field == CT_STATUS and mask is not None and value == 0 and equal:
                return "ct status ! dnat"
            if field == CT_LABEL and value == 0 and mask is not None and mask.bit_count() == 1:
                return f"ct label {mask.bit_length() - 1}" if not equal else f"ct label != {mask.bit_length() - 1}"
            number = hex(value) if mask is not None or field == MARK else str(value)
            text = _NAMES.get(field, {}).get(value, number)
            masked = f"{field.text} & {mask:#x}" if mask is not None else field.text
            return f"{masked} {'' if equal and mask is None else '== ' if equal else '!= '}{text}"
        case Member(fields, name, inside):
            return f"{' . '.join(f.text for f in fields)} {'' if inside else '!= '}@{name}"
        case Dispatch(field, name):
            return f"{field.text} vmap @{name}"
        case Verdict(code, chain):
            verb = Code(code).name.lower() if code in tuple(Code) else f"verdict {code}"
            return f"{verb} {chain}".rstrip()
        case Count():
            return "counter"
        case Redirect(port):
            return f"redirect to :{port}"
        case Reset():
            return "reject with tcp reset"
        case PutMark(value, connection):
            return f"{'ct' if connection else 'meta'} mark set {value:#x}"
        case PutLabel(number):
            return f"ct label set {number}"
        case Unknown(text):
            return text
