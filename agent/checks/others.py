"""What others on this machine have set up: in the way of ours, or not. Pure."""

from collections.abc import Sequence

from agent.checks import Finding

MOST = 3


def neighbours(names: Sequence[str], conflicts: Sequence[str]) -> Finding:
    """`names` are those that are there, `conflicts` what of theirs stands in the way."""
    if conflicts:
        more = f"; and {len(conflicts) - MOST} more" if len(conflicts) > MOST else ""
        return Finding(
            "neighbours",
            "fail",
            "; ".join(conflicts[:MOST]) + more,
            "choose other numbers in [marks] of /etc/culvert/agent.toml, on this machine alone",
        )
    return Finding("neighbours", "ok", f"{', '.join(names) or 'nobody'}; nothing of ours is in use")


def firewall(closed: Sequence[str], tunnel_port: int, inbound_port: int) -> Finding:
    """`closed` are the chains that drop what arrives for us."""
    if not closed:
        return Finding("firewall", "ok", "nothing drops what arrives for us")
    return Finding(
        "firewall",
        "warn",
        "; ".join(closed),
        f"let {tunnel_port} in (`ufw allow {tunnel_port}/tcp`, `firewall-cmd --permanent --add-port={tunnel_port}/tcp`)"
        f"; and, for callers without a mesh, what was redirected to {inbound_port} (docs/neighbours.md)",
    )
