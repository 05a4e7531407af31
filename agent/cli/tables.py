"""What the centre knows, as rows."""

from collections.abc import Iterable

from agent.cli.output import ago
from ca.contract import VERSION, NodeStatus, Status
from ca.resources.kinds import Resource
from ca.resources.mesh import Mesh
from ca.resources.metadata import Selector
from ca.resources.node import Discovery, Node
from ca.resources.policy import AuthorizationPolicy, PeerAuthentication
from ca.resources.revocation import Revocation
from ca.resources.workload import Match, Workload

MOST_NAMED = 10
"""Nodes named in one line; the table has them all."""

Rows = tuple[list[str], list[list[str]]]

_COLUMNS = {
    "Workload": ["workload", "node", "account", "mesh", "address", "ports", "match"],
    "Node": ["node", "address", "tunnel port", "may register", "labels"],
    "Mesh": ["trust domain", "enrolment", "mode", "egress", "certificates live"],
    "AuthorizationPolicy": ["policy", "workloads", "action", "rules", "dry run"],
    "Revocation": ["revocation", "identity", "serials", "since", "ends", "reason"],
    "PeerAuthentication": ["policy", "workloads", "mode", "ports"],
}


def resources(kind: str, found: Iterable[Resource], mesh: Resource | None) -> Rows:
    """Columns and rows for objects of one kind. `mesh` tells which workloads are enrolled."""
    return _COLUMNS[kind], [_row(r, mesh) for r in found]


def status(state: Status) -> Rows:
    """Columns and rows of every node: how far it is, and why no further."""
    columns = ["node", "address", "state", "active", "seen", "agent", "why"]
    return columns, [
        [
            node.name,
            node.address or "-",
            _state(node),
            str(node.active) if node.active else "-",
            f"{ago(state.time - node.seen)} ago" if node.seen else "-",
            node.agent_version or "-",
            why(node, state.revision),
        ]
        for node in state.nodes
    ]


def lagging(state: Status) -> str:
    """On how many nodes the newest revision is active, and on which not; empty if it is on all that have joined."""
    joined = [n for n in state.nodes if n.address]
    late = [n.name for n in joined if not n.connected or n.active < state.revision]
    if not late:
        return ""
    more = f" and {len(late) - MOST_NAMED} more" if len(late) > MOST_NAMED else ""
    active = f"active on {len(joined) - len(late)} of {len(joined)} nodes"
    return f"revision {state.revision} is {active}; not known to be on {', '.join(late[:MOST_NAMED])}{more}"


def why(node: NodeStatus, revision: int) -> str:
    """What keeps the node from acting on `revision`; empty if it does and nothing is wrong."""
    reasons = list(node.problems)
    if not node.address:
        reasons.insert(0, "has not joined yet")
    elif not node.connected:
        known = f"not connected: {node.away}" if node.away else "not connected"
        reasons.insert(0, known if node.seen else "not seen since the centre started")
    elif node.active < revision:
        reasons.insert(0, f"{revision - node.active} behind")
    if node.contract and node.contract != VERSION and not node.away:
        reasons.append(f"speaks contract {node.contract}, not {VERSION}: what is newer does not reach it")
    return "; ".join(reasons)


def _state(node: NodeStatus) -> str:
    return "connected" if node.connected else "away" if node.address else "invited"


def _row(resource: Resource, mesh: Resource | None) -> list[str]:
    match resource:
        case Workload(spec=spec):
            enrolled = isinstance(mesh, Mesh) and mesh.spec.enrolment.matches(resource.metadata.labels)
            return [
                resource.title,
                spec.node,
                spec.service_account,
                "on" if enrolled else "off",
                spec.address or "node's",
                ",".join(map(str, spec.ports)) or "-",
                _match(spec.match),
            ]
        case Node(spec=node):
            labels = _labels(resource.metadata.labels)
            may = _may_register(node.discovery)
            return [resource.metadata.name, node.address or "not joined", str(node.tunnel_port), may, labels]
        case Mesh(spec=all_):
            life = all_.certificate_life or "as set"
            return [all_.trust_domain, _labels(all_.enrolment.match_labels), all_.mode.value, all_.egress.value, life]
        case AuthorizationPolicy(spec=policy):
            dry = "yes" if policy.dry_run else "no"
            return [resource.title, _scope(policy.selector), policy.action.value, str(len(policy.rules)), dry]
        case PeerAuthentication(spec=peers):
            ports = ",".join(f"{port}={tls.mode.value}" for port, tls in peers.port_level_mtls.items())
            mode = peers.mtls.mode.value if peers.mtls else "-"
            return [resource.title, _scope(peers.selector), mode, ports or "-"]
        case Revocation(spec=revoked):
            serials = revoked.serials if len(revoked.serials) < 3 else (*revoked.serials[:2], "...")
            what = [revoked.identity or "-", ",".join(s[:8] for s in serials) or "-"]
            return [resource.metadata.name, *what, revoked.time or "-", revoked.ends or "-", revoked.reason or "-"]


def _scope(selector: Selector | None) -> str:
    return _labels(selector.match_labels) if selector else "all"


def _match(match: Match | None) -> str:
    if match is None:
        return "-"
    return next(f"{f} {value}" for f in match.__struct_fields__ if (value := getattr(match, f)) is not None)


def _may_register(may: Discovery | None) -> str:
    """`shop,mail: web,db` of namespaces and accounts."""
    if may is None or not may.namespaces:
        return "-"
    return f"{','.join(may.namespaces)}: {','.join(may.service_accounts) or 'any'}"


def _labels(labels: dict[str, str]) -> str:
    return ",".join(f"{k}={v}" for k, v in sorted(labels.items())) or "-"
