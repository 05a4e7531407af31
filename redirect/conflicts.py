"""Whose numbers are ours as well: marks, priorities and the routing table, against what others have. Pure.

A conflict is told with the other's own text, so that somebody knows whom to ask.
"""

from collections.abc import Iterator

from redirect.desired import Marks
from redirect.neighbours import Neighbours, RoutingRule
from redirect.routing import PROTOCOL
from redirect.ruleset import Hook

LOCAL_TABLE = 255
_OWNERS = (
    ("DOCKER", "Docker"),
    ("NETAVARK", "Podman"),
    ("netavark", "Podman"),
    ("ufw-", "ufw"),
    ("firewalld", "firewalld"),
    ("KUBE-", "Kubernetes"),
    ("cali-", "Calico"),
    ("CILIUM", "Cilium"),
    ("ts-", "Tailscale"),
    ("f2b-", "fail2ban"),
    ("LIBVIRT", "libvirt"),
)


def conflicts(found: Neighbours, marks: Marks) -> list[str]:
    """One sentence for each that stands in the way; empty when there is none."""
    return list(
        dict.fromkeys([*_rules(found, marks), *_routes(found, marks), *_marks(found, marks), *_nat(found, marks)])
    )


def _ours(rule: RoutingRule, marks: Marks) -> bool:
    return rule.protocol == PROTOCOL and rule.table == marks.route_table


def _rules(found: Neighbours, marks: Marks) -> Iterator[str]:
    for rule in found.rules:
        if _ours(rule, marks):
            continue
        if rule.table == marks.route_table:
            yield f"{rule} uses our routing table: set another marks.route_table"
        elif rule.mask and not rule.inverted and _meets(rule.mark, rule.mask, marks):
            yield f"{rule} takes packets with our marks for its own: set other marks"
        elif rule.table != LOCAL_TABLE and rule.priority <= marks.rule_priority and (rule.inverted or not rule.mask):
            yield f"{rule} goes before ours ({marks.rule_priority}): set marks.rule_priority below it"


def _routes(found: Neighbours, marks: Marks) -> Iterator[str]:
    if any(table == marks.route_table and protocol != PROTOCOL for table, protocol in found.routes):
        yield f"somebody else has routes in table {marks.route_table}: set another marks.route_table"


def _marks(found: Neighbours, marks: Marks) -> Iterator[str]:
    for use in found.marks:
        if not use.mask:
            continue
        if not use.sets and _meets(use.value, use.mask, marks):
            yield f"{use.where} (mark {use.value:#x}/{use.mask:#x}) takes packets with our marks for its own"
        elif use.sets and use.mask & marks.mask:
            yield f"{use.where} (mark {use.value:#x}/{use.mask:#x}) overwrites bits of our marks"


def _meets(value: int, mask: int, marks: Marks) -> bool:
    """Whether what we mark has these bits so."""
    return value & mask in (marks.agent & mask, marks.spoof & mask)


def _nat(found: Neighbours, marks: Marks) -> Iterator[str]:
    for chain in found.chains:
        base = chain.base
        if base and base.type == "nat" and base.hook in (Hook.OUTPUT, Hook.PREROUTING):
            if base.priority <= marks.nat_priority:
                yield (
                    f"table {chain.table}, chain {chain.name} (priority {base.priority}) translates addresses before "
                    f"ours ({marks.nat_priority}): set marks.nat_priority below it"
                )


def owners(found: Neighbours) -> list[str]:
    """Who is there, as far as names tell."""
    names = {f"{chain.table}/{chain.name}" for chain in found.chains}
    known = [owner for sign, owner in _OWNERS if any(sign in name for name in names)]
    return list(dict.fromkeys([*known, *found.legacy]))


def closed(found: Neighbours, ports: tuple[int, ...]) -> list[str]:
    """Chains that drop what arrives unless a rule of their table names it, where none names one of these ports."""
    texts = []
    for chain in found.chains:
        base = chain.base
        if base and base.type == "filter" and base.hook == Hook.INPUT and not base.accepts:
            named = {n for c in found.chains if c.table == chain.table for n in c.numbers}
            if missing := [str(port) for port in ports if port not in named]:
                texts.append(f"table {chain.table}, chain {chain.name} lets no TCP port {' and '.join(missing)} in")
    return texts
