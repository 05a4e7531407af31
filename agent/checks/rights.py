"""What the process may do. Pure."""

from collections.abc import Mapping

from agent.checks import Finding

NEEDED = {
    12: ("NET_ADMIN", "rules, marks and foreign source addresses"),
    13: ("NET_RAW", "marks of workers"),
    6: ("SETGID", "workers run as a user of their own"),
    7: ("SETUID", "workers run as a user of their own"),
    8: ("SETPCAP", "workers give their rights up"),
    5: ("KILL", "to end a worker"),
}
"""Numbers of linux/capability.h; an agent without one of these is none, or a poor one."""
_ALWAYS, _WORKERS = (12, 13), (6, 7)
"""Without the former nothing can be captured or carried, without the latter workers cannot become another user."""
_REMEDY = "run it as root; in a container add these capabilities, in a unit CapabilityBoundingSet="
WANTED = {
    21: ("SYS_ADMIN", "to enter network namespaces of workloads"),
    19: ("SYS_PTRACE", "to find namespaces and sockets of other users' processes"),
    2: ("DAC_READ_SEARCH", "to find namespaces and cgroups of other users"),
}
"""Without one of these, only what it is for."""


def rights(effective: int, uid: int) -> Finding:
    """`effective` are the capabilities as a bit mask."""
    if missing := _missing(effective, NEEDED):
        return Finding("rights", "fail", f"{_who(uid)}, and lacks {missing}", _REMEDY)
    if missing := _missing(effective, WANTED):
        return Finding("rights", "warn", f"lacks {missing}", "add it to CapabilityBoundingSet=, or do without")
    return Finding("rights", "ok", "all capabilities that it takes")


def refusal(effective: int, uid: int, worker: int) -> str:
    """Why an agent whose workers are to be the user `worker` cannot run at all, and what to do; empty where it can."""
    bits = _ALWAYS if worker == uid else (*_ALWAYS, *_WORKERS)
    missing = _missing(effective, {bit: NEEDED[bit] for bit in bits})
    return f"{_who(uid)}, and lacks {missing}; {_REMEDY}" if missing else ""


def _who(uid: int) -> str:
    return "root" if uid == 0 else f"uid {uid}, not root"


def _missing(effective: int, wanted: Mapping[int, tuple[str, str]]) -> str:
    return ", ".join(f"CAP_{name} ({use})" for bit, (name, use) in wanted.items() if not effective >> bit & 1)
