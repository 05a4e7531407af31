"""Whether there is room: tracked connections, descriptors, ports, disk. Pure."""

from collections.abc import Collection, Mapping

from agent.checks import Finding

NEARLY = 0.75
"""Of a table that is used: from here on it is a warning,"""
FULL = 0.95
"""and from here on a failure."""
FEW_PORTS = 4096
FEW_DESCRIPTORS = 65536
LITTLE_DISK = 64 * 2**20
"""Bytes: the view of a mesh of 100,000 workloads, twice, and its log."""
FEW_INODES = 1000


def conntrack(count: int | None, limit: int | None, sockets: int) -> Finding:
    """`count` of `limit` connections are tracked; None before anything tracks any. `sockets` are the TCP connections
    that the machine has: with the first table of ours, all of them begin to be tracked."""
    if not limit or count is None:
        return Finding("conntrack", "ok", "not in use yet; the first rule starts it")
    # A captured connection is two to its machine: the program's own, and the leg of it in a tunnel or on loopback.
    expected = max(count, sockets)
    text = f"{count:,} of {limit:,} connections tracked, {sockets:,} TCP sockets in use"
    remedy = f"sysctl net.netfilter.nf_conntrack_max={max(2 * limit, 4 * expected)}"
    if count >= FULL * limit:
        return Finding("conntrack", "fail", f"{text}: new ones are dropped when it is full", remedy)
    if expected >= NEARLY * limit:
        return Finding("conntrack", "warn", f"{text}: capture tracks all of them", remedy)
    return Finding("conntrack", "ok", text)


def descriptors(limit: int, workloads: int, workers: int, machine: tuple[int, int]) -> Finding:
    """`limit` is the hard one of our process; `machine` has how many the machine uses, and may."""
    # Each workload has a socket for each IP version at each worker, each namespace the same for what arrives.
    needed = 256 + 4 * workloads * workers
    used, most = machine
    if used >= FULL * most:
        return Finding(
            "descriptors", "fail", f"the machine uses {used:,} of {most:,}", f"sysctl fs.file-max={2 * most}"
        )
    text = f"{limit:,} for a process: {max(0, (limit - 256) // 2):,} connections for each of {workers} workers"
    remedy = "set LimitNOFILE=1048576 in the unit, or `ulimit -n 1048576` before `culvert agent run`"
    if limit < needed:
        return Finding("descriptors", "fail", f"{limit:,}, and {workloads} workloads take {needed:,} alone", remedy)
    if limit < FEW_DESCRIPTORS:
        return Finding("descriptors", "warn", text, remedy)
    return Finding("descriptors", "ok", text)


def ephemeral(ports: range, reserved: Collection[range], ours: Collection[range], sockets: int) -> Finding:
    """`ports` is what the kernel gives to connections, `ours` what we listen on."""
    text = f"{len(ports):,} ({ports.start}-{ports.stop - 1}), {sockets:,} TCP sockets in use"
    if len(ports) < FEW_PORTS:
        return Finding(
            "ports to dial", "fail", f"only {text}", "sysctl net.ipv4.ip_local_port_range='32768 60999', or wider"
        )
    free = [r for r in ours if _meets(r, ports) and not any(_covers(k, r) for k in reserved)]
    if free:
        names = ",".join(f"{r.start}-{r.stop - 1}" if len(r) > 1 else f"{r.start}" for r in free)
        return Finding(
            "ports to dial",
            "warn",
            f"{ports.start}-{ports.stop - 1} holds ports we listen on: a connection may take one first",
            f"sysctl net.ipv4.ip_local_reserved_ports={names}",
        )
    if sockets >= NEARLY * len(ports):
        return Finding("ports to dial", "warn", text, "sysctl net.ipv4.ip_local_port_range='10240 65535', or wider")
    return Finding("ports to dial", "ok", text)


def _meets(a: range, b: range) -> bool:
    return a.start < b.stop and b.start < a.stop


def _covers(outer: range, inner: range) -> bool:
    return outer.start <= inner.start and inner.stop <= outer.stop


def listening(taken: Mapping[int, str]) -> Finding:
    """`taken` are ports we need that other programs listen on, and who they are."""
    if not taken:
        return Finding("ports to listen", "ok", "nobody else has any of ours")
    names = ", ".join(f"{port} ({who})" if who else str(port) for port, who in sorted(taken.items()))
    return Finding(
        "ports to listen",
        "fail",
        f"another program has {names}",
        "end it, or choose others: tunnel_port, capture_ports, metrics, readiness",
    )


def disk(directory: str, writable: bool, free: int, inodes: int | None) -> Finding:
    """Room for what must be on disk before rules follow it. `inodes` None: this file system has no limit."""
    remedy = "make room, or choose another with state_dir"
    if not writable:
        return Finding("disk", "fail", f"{directory} is on a read-only file system, or not ours to write", remedy)
    text = f"{free // 2**20:,} MiB free for {directory}"
    if free < LITTLE_DISK:
        return Finding("disk", "fail", f"only {text}: no change of the mesh takes effect without it", remedy)
    if inodes is not None and inodes < FEW_INODES:
        return Finding("disk", "fail", f"only {inodes} inodes free for {directory}", remedy)
    return Finding("disk", "ok", text)
