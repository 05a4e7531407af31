"""The documented meaning of policies, written a second time and as plainly as possible, to hold the evaluator against.

Knows the resources people write, and nothing of the evaluator.
"""

import ipaddress
from collections.abc import Sequence

from ca.resources.mesh import Mode
from ca.resources.policy import Action, AuthorizationPolicy, PeerAuthentication, Rule

Caller = tuple[str, str] | None
"""(principal without spiffe://, namespace), or nobody."""


def allows(
    policies: Sequence[AuthorizationPolicy | PeerAuthentication],
    mesh_mode: Mode,
    namespace: str,
    labels: dict[str, str],
    caller: Caller,
    source: str,
    destination: str,
    port: int,
) -> bool:
    """Whether a workload with these labels in that namespace may be called."""
    in_scope = []
    for policy in policies:
        if policy.metadata.namespace not in ("", namespace):
            continue
        selector = policy.spec.selector
        if selector is not None and any(labels.get(k) != v for k, v in selector.match_labels.items()):
            continue
        in_scope.append(policy)

    if caller is None and mode([p for p in in_scope if isinstance(p, PeerAuthentication)], mesh_mode, port) == "STRICT":
        return False
    rules = [p for p in in_scope if isinstance(p, AuthorizationPolicy) and not p.spec.dry_run]
    for policy in rules:
        if policy.spec.action == Action.DENY:
            for rule in policy.spec.rules:
                if matches(rule, caller, source, destination, port, denying=True):
                    return False
    allowing = [p for p in rules if p.spec.action == Action.ALLOW]
    if not allowing:
        return True
    for policy in allowing:
        for rule in policy.spec.rules:
            if matches(rule, caller, source, destination, port, denying=False):
                return True
    return False


def mode(peers: Sequence[PeerAuthentication], mesh_mode: Mode, port: int) -> str:
    """The narrowest scope that says something decides; a port before the rest; STRICT before PERMISSIVE."""
    workload = [p for p in peers if p.spec.selector is not None]
    ns = [p for p in peers if p.spec.selector is None and p.metadata.namespace]
    mesh = [p for p in peers if p.spec.selector is None and not p.metadata.namespace]
    for scope in (workload, ns, mesh):
        for_port = [p.spec.port_level_mtls[str(port)].mode.value for p in scope if str(port) in p.spec.port_level_mtls]
        if for_port:
            return max(for_port)  # "STRICT" > "PERMISSIVE"
        general = [p.spec.mtls.mode.value for p in scope if p.spec.mtls is not None]
        if general:
            return max(general)
    return mesh_mode.value


def matches(rule: Rule, caller: Caller, source: str, destination: str, port: int, *, denying: bool) -> bool:
    """One of `from` and one of `to`."""
    if rule.from_ is not None:
        for clause in rule.from_:
            s = clause.source
            principal, namespace = caller if caller else ("", "")
            checks = [
                named(s.principals, principal),
                not_named(s.not_principals, principal, denying),
                named(s.namespaces, namespace),
                not_named(s.not_namespaces, namespace, denying),
                not s.ip_blocks or inside(source, s.ip_blocks),
                not s.not_ip_blocks or not inside(source, s.not_ip_blocks),
            ]
            if all(checks):
                break
        else:
            return False
    if rule.to is not None:
        for each in rule.to:
            o = each.operation
            checks = [
                not o.ports or port in o.ports,
                not o.not_ports or port not in o.not_ports,
                not o.ip_blocks or inside(destination, o.ip_blocks),
                not o.not_ip_blocks or not inside(destination, o.not_ip_blocks),
            ]
            if all(checks):
                break
        else:
            return False
    return True


def named(patterns: Sequence[str], value: str) -> bool:
    """No patterns: yes. Nobody there: no. Otherwise any of them."""
    if not patterns:
        return True
    return value != "" and any(fits(p, value) for p in patterns)


def not_named(patterns: Sequence[str], value: str, denying: bool) -> bool:
    """No patterns: yes. Nobody there: only in a DENY. Otherwise none of them."""
    if not patterns:
        return True
    if value == "":
        return denying
    return not any(fits(p, value) for p in patterns)


def fits(pattern: str, value: str) -> bool:
    if pattern.startswith("spiffe://"):
        pattern = pattern[len("spiffe://") :]
    if pattern == "*":
        return True
    if pattern[0] == "*":
        return value.endswith(pattern[1:])
    if pattern[-1] == "*":
        return value.startswith(pattern[:-1])
    return value == pattern


def inside(address: str, blocks: Sequence[str]) -> bool:
    return any(ipaddress.ip_address(address) in ipaddress.ip_network(b, strict=False) for b in blocks)
