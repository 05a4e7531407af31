"""What the kernel and the mounts offer. Pure."""

from collections.abc import Sequence

from agent.checks import Finding

OLDEST = (5, 17)
"""Since then CAP_NET_RAW is enough to mark a socket, which is all that workers have."""


def versions(release: str, python: tuple[int, int], ours: str, running: str = "") -> Finding:
    """`release` as uname has it; `ours` is the version of this command, `running` that of the agent, if one runs."""
    text = f"Linux {release}, Python {python[0]}.{python[1]}, Culvert {ours}"
    numbers = tuple(int(p) for p in release.split("-")[0].split(".")[:2] if p.isdigit())
    if numbers and numbers < OLDEST:
        return Finding("versions", "warn", text, "use Linux 5.17 or later: before, workers cannot mark sockets")
    if running and running != ours:
        return Finding("versions", "warn", f"{text}, but the agent is {running}", "systemctl restart culvert-agent")
    return Finding("versions", "ok", text)


def trial(refusals: Sequence[str], without_cgroups: Sequence[str]) -> Finding:
    """`refusals` are what the kernel refused of a whole table of ours, `without_cgroups` of one without those."""
    if not refusals:
        return Finding("nft", "ok", "the kernel took a whole table of ours, in a network namespace made for the trial")
    if not without_cgroups:
        return Finding("nft", "warn", _first(refusals), "match workloads by uid, address or network namespace")
    return Finding("nft", "fail", _first(without_cgroups), "use a kernel with nf_tables, as Debian's has")


def presence(owned: bool, untold: str) -> Finding:
    """`owned`: whether our table can be nobody else's to change; `untold`: why the kernel cannot know whether the agent
    is there."""
    doubts = [
        *(
            []
            if owned
            else ["`nft flush ruleset` of others takes our table away until a watch restores it (before 6.9)"]
        ),
        *([f"failMode open is not possible, and all fails closed: {untold}"] if untold else []),
    ]
    if doubts:
        return Finding("own tables", "warn", "; ".join(doubts), "use Linux 6.9 or later")
    text = "nobody else changes them while it runs, and the kernel knows when it has gone"
    return Finding("own tables", "ok", text)


def no_trial(reason: str) -> Finding:
    """The trial could not be made."""
    return Finding("nft", "unknown", f"not tried: {reason}", "run `culvert check` as root")


def _first(refusals: Sequence[str]) -> str:
    return refusals[0] + (f" (and {len(refusals) - 1} more)" if len(refusals) > 1 else "")


def ipv6(built_in: bool, disabled: bool, loopback_disabled: bool) -> Finding:
    """`disabled` is the module's parameter, `loopback_disabled` that of the loopback interface."""
    only = "only IPv4 is captured; workloads with an IPv6 address cannot be reached from here"
    remedy = "nothing to do in a mesh of IPv4 addresses; else "
    if not built_in or disabled:
        return Finding(
            "IPv6", "warn", f"switched off at boot (ipv6.disable=1): {only}", f"{remedy}boot without ipv6.disable=1"
        )
    if loopback_disabled:
        return Finding(
            "IPv6", "warn", f"switched off on loopback: {only}", f"{remedy}sysctl net.ipv6.conf.lo.disable_ipv6=0"
        )
    return Finding("IPv6", "ok", "on")


def mounts(proc: bool, hidden: bool, sys: bool, read_only: Sequence[str]) -> Finding:
    """Whether /proc and /sys are there; `hidden`: /proc shows other users' processes to nobody else."""
    if not proc or not sys:
        lacking = " and ".join(name for name, there in (("/proc", proc), ("/sys", sys)) if not there)
        return Finding("mounts", "fail", f"{lacking} cannot be read", "mount it into the agent's root")
    if hidden:
        return Finding(
            "mounts",
            "warn",
            "/proc hides other processes (hidepid): namespaces by PID and listening programs cannot be named",
            "mount /proc without hidepid for the agent, or name workloads otherwise",
        )
    told = f" ({', '.join(read_only)} read-only, which is enough: no sysctl is changed)" if read_only else ""
    return Finding("mounts", "ok", f"/proc and /sys can be read{told}")


def cgroups(mount: str | None, watches: bool) -> Finding:
    """`mount` is where version 2 is mounted, `watches` whether inotify gives us an instance."""
    if mount is None:
        return Finding(
            "cgroups",
            "warn",
            "cgroup v2 is not mounted: no workload can be matched by cgroup (systemd units cannot)",
            "mount -t cgroup2 none /sys/fs/cgroup/unified, or match by uid",
        )
    if not watches:
        return Finding(
            "cgroups",
            "warn",
            "no inotify instance is left: a unit that restarts is noticed up to a second late",
            "sysctl fs.inotify.max_user_instances=1024",
        )
    return Finding("cgroups", "ok", f"version 2 at {mount}")
