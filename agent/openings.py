"""What settings leave alone at a node: skips on the way out, and what may really be left open on the way in. Pure.

A skip on the way in lets plaintext past the agent, and so past every policy. It therefore holds only where no policy
would refuse anybody: not in mode STRICT, and not where an AuthorizationPolicy could deny a caller without an identity.
Elsewhere the policy wins, whichever of the two was written later, and the node reports the skip as a problem.
"""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from agent.policy import compile_policies, scoped
from agent.snapshot import Snapshot
from ca.resources.capture import FailMode, Skip
from ca.resources.policy import Action, Operation, Rule
from ca.resources.workload import SourceAddress, Workload
from redirect import desired


def skip(snapshot: Snapshot, workload: Workload) -> desired.Skip:
    """What of the workload's own connections is not captured."""
    found = _both(snapshot, workload).out
    return desired.Skip(found.ports, found.cidrs, found.uids)


def skipped(snapshot: Snapshot, workload: Workload, address: str, port: int, uid: int | None = None) -> bool:
    """Whether the workload's own connections to (address, port) are not captured: those of the user `uid`, or whoever
    makes them."""
    found = _both(snapshot, workload).out
    return (
        port in found.ports or uid in found.uids or any(ip_address(address) in ip_network(cidr) for cidr in found.cidrs)
    )


def rest(snapshot: Snapshot, workload: Workload) -> desired.Rest:
    """What becomes of what the mesh does not carry of the workload: its own word, else that of the mesh."""
    common = snapshot.mesh.spec.capture.unmeshed if snapshot.mesh else None
    said = workload.spec.capture.unmeshed or common
    return desired.Rest(said.value) if said else desired.Rest.ALLOW


def opening(snapshot: Snapshot, workload: Workload) -> tuple[desired.Opening, tuple[str, ...]]:
    """What of the plaintext that arrives for the workload is not captured, and a problem for each port at which it is
    all the same."""
    wanted = _both(snapshot, workload).in_
    if wanted.empty:
        return desired.Opening(), ()
    concerned = [p for p in workload.spec.ports if wanted.cidrs or wanted.uids or p in wanted.ports]
    closed = {port: why for port in concerned if (why := closed_because(snapshot, workload, port))}
    everyone = [p for p in workload.spec.ports if p in wanted.ports and p not in closed]
    some = [p for p in concerned if p not in closed and p not in everyone]
    problems = [
        f"workload {workload.title}: capture.in.skip does not hold at port {port}, which stays captured: {why}"
        for port, why in closed.items()
    ]
    if not some:
        return desired.Opening(tuple(everyone)), tuple(problems)
    return desired.Opening(tuple(everyone), tuple(some), wanted.cidrs, wanted.uids), tuple(problems)


def unattended(snapshot: Snapshot, workload: Workload) -> tuple[int, ...]:
    """The ports at which plaintext may reach a workload that fails open, while the agent is away: those at which no
    policy would refuse anybody. What a policy could refuse is refused then as well."""
    if workload.spec.fail_mode is not FailMode.OPEN:
        return ()
    return tuple(port for port in workload.spec.ports if not closed_because(snapshot, workload, port))


def closed_because(snapshot: Snapshot, workload: Workload, port: int) -> str:
    """Why somebody without an identity may be refused at the port; empty where nobody is."""
    if snapshot.mesh and (why := snapshot.revoked.identity(workload.identity(snapshot.mesh.spec.trust_domain))):
        return why
    if workload.spec.source_address is SourceAddress.PROXY_PROTOCOL:
        return "it trusts the PROXY header, which a caller who is let past the agent could make up"
    if where := compile_policies(snapshot, workload).strict_at(port):
        return where
    policies = [p for p in scoped(snapshot, workload) if not p.spec.dry_run]
    for policy in policies:
        if policy.spec.action is Action.DENY and any(_denies(rule, port) for rule in policy.spec.rules):
            return f"policy {policy.title} denies some callers there"
    allowing = [p for p in policies if p.spec.action is Action.ALLOW]
    if allowing and not any(_admits(rule, port) for p in allowing for rule in p.spec.rules):
        return f"policy {allowing[0].title} does not allow everybody there"
    return ""


class _Skips:
    """What mesh and workload say together."""

    def __init__(self, out: Skip, in_: Skip) -> None:
        self.out, self.in_ = out, in_


def _both(snapshot: Snapshot, workload: Workload) -> _Skips:
    own = workload.spec.capture
    if snapshot.mesh is None:
        return _Skips(own.out.skip, own.in_.skip)
    common = snapshot.mesh.spec.capture
    return _Skips(own.out.skip | common.out.skip, own.in_.skip | common.in_.skip)


def _denies(rule: Rule, port: int) -> bool:
    """Whether the rule may match a caller without an identity at the port: what names positively whom it means never
    does."""
    anonymous = rule.from_ is None or any(not (c.source.principals or c.source.namespaces) for c in rule.from_)
    return anonymous and (rule.to is None or any(_at(c.operation, port) for c in rule.to))


def _admits(rule: Rule, port: int) -> bool:
    """Whether the rule matches everybody at the port, at every address of the workload."""
    return rule.from_ is None and (rule.to is None or _everywhere((c.operation for c in rule.to), port))


def _everywhere(operations: Iterable[Operation], port: int) -> bool:
    return any(_at(o, port) and not (o.ip_blocks or o.not_ip_blocks) for o in operations)


def _at(operation: Operation, port: int) -> bool:
    return (not operation.ports or port in operation.ports) and port not in operation.not_ports
