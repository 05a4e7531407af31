"""Gets the facts about this machine and has every precondition judged. Blocking; changes nothing.

A fact that cannot be had is a finding as well: a check that fails to look must not look like one that passed.
"""

import ctypes
import os
import platform
import resource
import socket
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.checks import Finding, clocks, kernel, others, rights, room
from agent.leaf import Leaf
from agent.owners import owners
from agent.settings import AccountError, AgentSettings, endpoint, worker_account
from ca.endpoint import split
from redirect.cgroup import mount_point
from redirect.conflicts import closed, conflicts
from redirect.conflicts import owners as owners_of
from redirect.diag import LISTEN, Sockets
from redirect.names import PRESENCE, TABLE
from redirect.namespace import NamespaceError
from redirect.neighbours import neighbours
from redirect.netlink import CaptureError, Refused
from redirect.trial import owned, told, trial

DIAL = 3.0
"""Seconds for the centre to answer a connection."""
_ERROR = 5
"""TIME_ERROR of linux/timex.h: the clock is not synchronised."""
INBOUND_PORT = 15006
TABLES = (TABLE, PRESENCE)


@dataclass(frozen=True, slots=True)
class Node:
    """What is known of this node besides its settings. `connected`: None where nobody holds a session."""

    version: str
    name: str = ""
    trust_domain: str = ""
    centre: str = ""
    connected: bool | None = None
    centre_problem: str = ""
    leaves: Mapping[str, Leaf] | None = None
    own: str = ""
    workloads: int = 0
    skew: str = ""
    objection: str = ""


def look(settings: AgentSettings, node: Node) -> list[Finding]:
    """Every precondition of this machine, as this process sees it."""
    checks: tuple[tuple[str, Callable[[], Finding]], ...] = (
        ("versions", lambda: kernel.versions(platform.release(), sys.version_info[:2], node.version)),
        ("rights", lambda: rights.rights(capabilities(), os.geteuid())),
        ("workers' user", lambda: clocks.account(_account_problem(settings), settings.worker_user)),
        ("mounts", _mounts),
        ("cgroups", lambda: kernel.cgroups(mount_point(), _watches())),
        ("nft", lambda: _trial(settings)),
        ("own tables", lambda: _presence(settings)),
        ("IPv6", _ipv6),
        ("conntrack", lambda: room.conntrack(_netfilter("count"), _netfilter("max"), sockets_in_use())),
        ("descriptors", lambda: room.descriptors(_limit(), node.workloads, settings.worker_count, _machine_files())),
        ("ports to dial", lambda: _ephemeral(settings)),
        ("ports to listen", lambda: room.listening(_taken(settings))),
        ("neighbours", lambda: _neighbours(settings)),
        ("firewall", lambda: _firewall(settings)),
        ("disk", lambda: _disk(settings.state_dir)),
        ("clock", lambda: clocks.clock(_synchronised(), node.skew, node.objection)),
        ("mesh", lambda: clocks.membership(node.name, node.trust_domain)),
        ("certificates", lambda: _certificates(node)),
        ("centre", lambda: clocks.centre(node.centre, _centre_problem(node))),
    )
    return [_asked(name, check) for name, check in checks]


def _asked(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except (OSError, ValueError, LookupError, Refused) as error:
        return Finding(name, "unknown", f"it cannot be looked at: {error}", "run `culvert check` as root")


def capabilities() -> int:
    """Those that this process has, as a bit mask."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("CapEff:"))


def _account_problem(settings: AgentSettings) -> str:
    try:
        worker_account(settings.worker_user)
    except AccountError as error:
        return str(error)
    return ""


def _mounts() -> Finding:
    found = {name: os.access(f"{name}/{inside}", os.R_OK) for name, inside in (("/proc", "self/stat"), ("/sys", "."))}
    places = [*(n for n, there in found.items() if there), *(["/proc/sys"] if os.path.exists("/proc/sys") else [])]
    read_only = [n for n in places if os.statvfs(n).f_flag & os.ST_RDONLY]
    try:
        hidden = not os.listdir("/proc/1")
    except OSError:
        hidden = True
    return kernel.mounts(found["/proc"], hidden, found["/sys"], read_only)


def _watches() -> bool:
    fd = ctypes.CDLL(None).inotify_init1(os.O_CLOEXEC)
    if fd >= 0:
        os.close(fd)
    return bool(fd >= 0)


def _trial(settings: AgentSettings) -> Finding:
    try:
        refusals = trial(settings.packet_marks)
        return kernel.trial(refusals, trial(settings.packet_marks, cgroups=False) if refusals else ())
    except NamespaceError as error:
        return kernel.no_trial(str(error))


def _presence(settings: AgentSettings) -> Finding:
    try:
        return kernel.presence(owned(settings.packet_marks), told(settings.packet_marks))
    except (CaptureError, NamespaceError) as error:
        return Finding("own tables", "unknown", f"not tried: {error}", "run `culvert check` as root")


def _ipv6() -> Finding:
    sysctls = Path("/proc/sys/net/ipv6")
    return kernel.ipv6(
        sysctls.exists(),
        _flag(Path("/sys/module/ipv6/parameters/disable")),
        _flag(sysctls / "conf/lo/disable_ipv6"),
    )


def _flag(path: Path) -> bool:
    try:
        return path.read_text().strip() == "1"
    except OSError:
        return False


def _netfilter(what: str) -> int | None:
    try:
        return int(Path(f"/proc/sys/net/netfilter/nf_conntrack_{what}").read_text())
    except FileNotFoundError:
        return None


def sockets_in_use() -> int:
    """TCP sockets of this network namespace, those that wait to be forgotten included."""
    found = 0
    for name in ("sockstat", "sockstat6"):
        try:
            lines = Path("/proc/self/net", name).read_text().splitlines()
        except FileNotFoundError:
            continue
        for line in lines:
            words = line.split()
            if words[0] in ("TCP:", "TCP6:"):
                row = dict(zip(words[1::2], words[2::2], strict=False))
                found += int(row.get("inuse", 0)) + int(row.get("tw", 0))
    return found


def _limit() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 2**31 if hard == resource.RLIM_INFINITY else hard


def _machine_files() -> tuple[int, int]:
    used, _, most = Path("/proc/sys/fs/file-nr").read_text().split()
    return int(used), int(most)


def _ephemeral(settings: AgentSettings) -> Finding:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    reserved = list(_ranges(Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text()))
    ours = [range(port, port + 1) for port in _single(settings)] + [settings.port_range()]
    return room.ephemeral(range(first, last + 1), reserved, ours, sockets_in_use())


def _ranges(text: str) -> Iterator[range]:
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            yield range(int(first), int(last or first) + 1)


def _single(settings: AgentSettings) -> Iterator[int]:
    yield from (INBOUND_PORT, settings.tunnel_port)
    for where, name in ((settings.metrics, "metrics"), (settings.readiness, "readiness")):
        if where:
            yield endpoint(where, name)[1]


def _taken(settings: AgentSettings) -> dict[int, str]:
    """Our ports that others listen on. An agent's own sockets carry its mark, but for those of its two pages."""
    wanted: Collection[int] = {*_single(settings), *settings.port_range()}
    marks = settings.packet_marks
    with Sockets() as sockets:
        found = {
            s.inode: s.local[1]
            for s in sockets.listed(1 << LISTEN)
            if s.local[1] in wanted and (s.mark ^ marks.agent) & marks.mask
        }
    if not found:
        return {}
    names = owners(found)
    return {
        port: str(names[inode]) if inode in names else ""
        for inode, port in found.items()
        if inode not in names or names[inode].pid != os.getpid()
    }


def _neighbours(settings: AgentSettings) -> Finding:
    found = neighbours(TABLES)
    return others.neighbours(owners_of(found), conflicts(found, settings.packet_marks))


def _firewall(settings: AgentSettings) -> Finding:
    ports = (settings.tunnel_port, INBOUND_PORT)
    return others.firewall(closed(neighbours(TABLES), ports), *ports)


def _disk(directory: Path) -> Finding:
    place = directory
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    inodes = found.f_favail if found.f_files else None
    writable = os.access(place, os.W_OK) and not found.f_flag & os.ST_RDONLY
    return room.disk(str(directory), writable, found.f_bavail * found.f_frsize, inodes)


def _synchronised() -> bool | None:
    """What adjtimex says; a sandbox with ProtectClock= does not let us ask."""
    libc = ctypes.CDLL(None, use_errno=True)
    state = libc.adjtimex(ctypes.create_string_buffer(512))
    return None if state < 0 else bool(state != _ERROR)


def _certificates(node: Node) -> Finding:
    if node.leaves is None:
        return Finding("certificates", "unknown", "they are not to be read from here", "run `culvert check` as root")
    dates = {uri: (leaf.not_before, leaf.not_after) for uri, leaf in node.leaves.items()}
    return clocks.certificates(dates, node.own, time.time())


def _centre_problem(node: Node) -> str:
    if node.connected is not None:
        return "" if node.connected else node.centre_problem or "no session yet"
    if not node.centre:
        return ""
    try:
        socket.create_connection(split(node.centre, 15012), DIAL).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
