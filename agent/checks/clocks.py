"""The clock, and what depends on it: certificates. And the centre that renews them. Pure."""

from collections.abc import Mapping

from agent.checks import Finding
from ca.lifetimes import USUAL

HOUR = 3600.0


def clock(state: bool | None, skew: str, objection: str) -> Finding:
    """`state` is what the kernel says of its clock, None where it may not be asked; `skew` how far it is from the
    centre's, if that is known, and `objection` why that is too far."""
    if objection:
        return Finding("clock", "fail", objection, "set it right, here or at the centre: timedatectl set-ntp true")
    if skew and state is None:
        return Finding("clock", "ok", skew)
    match state:
        case True:
            return Finding("clock", "ok", f"synchronised; {skew}" if skew else "synchronised")
        case False:
            return Finding(
                "clock",
                "warn",
                f"nobody keeps it right, and certificates are judged by it{'; ' if skew else ''}{skew}",
                "timedatectl set-ntp true, or run chrony",
            )
    return Finding("clock", "unknown", "not to be asked from here (the unit's sandbox); ask as root")


def membership(node: str, trust_domain: str) -> Finding:
    """Both empty: this machine has joined none."""
    if node:
        return Finding("mesh", "ok", f"{node} of {trust_domain}")
    return Finding(
        "mesh",
        "warn",
        "this machine has joined none",
        "culvert central token create --node NAME at the centre, then culvert agent join TOKEN",
    )


def certificates(dates: Mapping[str, tuple[float, float]], own: str, now: float) -> Finding:
    """(not before, not after) by identity, `own` being the node's."""
    for uri, (before, after) in dates.items():
        who = "the node's own certificate" if uri == own else uri
        if now < before:
            return Finding(
                "certificates", "fail", f"{who} is valid in {(before - now) / HOUR:.1f} h only", "set the clock right"
            )
        if uri == own and after <= now:
            return Finding(
                "certificates",
                "fail",
                f"{who} ended {(now - after) / HOUR:.1f} h ago: the centre does not know us by it any more",
                "with the centre in reach it comes back by its key; culvert status says why it does not",
            )
    late = [uri for uri, (_, after) in dates.items() if after <= now and uri != own]
    if late:
        return Finding(
            "certificates",
            "fail",
            f"{late[0]} ended {(now - dates[late[0]][1]) / HOUR:.1f} h ago" + _more(len(late) - 1),
            "culvert certificates says why it was not renewed",
        )
    if not dates:
        return Finding("certificates", "ok", "none yet")
    ends = {uri: (after - now, after - before) for uri, (before, after) in dates.items()}
    late = [uri for uri, (left, life) in ends.items() if left < life * USUAL.renewed]
    if late:
        return Finding(
            "certificates",
            "warn",
            f"{late[0]} should have been renewed: it ends in {ends[late[0]][0] / HOUR:.1f} h" + _more(len(late) - 1),
            "culvert certificates says why it was not renewed",
        )
    first = min(after for _, after in dates.values())
    return Finding("certificates", "ok", f"{len(dates)} valid; the first ends in {(first - now) / HOUR:.1f} h")


def _more(count: int) -> str:
    return f", and {count} more" if count else ""


def centre(address: str, problem: str) -> Finding:
    """`problem` is empty when it could be reached."""
    if not address:
        return Finding("centre", "unknown", "nobody said where it is")
    if problem:
        return Finding(
            "centre",
            "warn",
            f"{address} cannot be reached: {problem}; what is known is acted on, until certificates end",
            "see whether `culvert central run` runs there, and whether a firewall stands between",
        )
    return Finding("centre", "ok", f"{address} answers")


def account(problem: str, user: str) -> Finding:
    """The workers' user."""
    if problem:
        cause, _, remedy = problem.partition("; ")
        return Finding("workers' user", "fail", cause, remedy)
    return Finding("workers' user", "ok", user)
