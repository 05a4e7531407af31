"""What is never captured on this machine, beyond the ports that never are: where people log in, and the centre.

A login port is one at which root's own sshd listens. That a program calls itself sshd proves nothing, so its socket
must have been made by root: a forwarded port of somebody's session is none. With socket activation systemd listens;
then the port counts that ssh's configuration names. One bound to one address exempts that address only. Blocking.
"""

import re
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from glob import glob
from ipaddress import ip_address
from pathlib import Path

from agent.owners import Owner, owners, process_name, processes, sockets_of
from ca.endpoint import split
from redirect.diag import LISTEN, Sock, Sockets

PROGRAMS = frozenset({"sshd", "dropbear", "in.telnetd"})
CONFIGURED = (
    "/etc/ssh/sshd_config",
    "/etc/ssh/sshd_config.d/*.conf",
    "/run/systemd/generator/ssh*.socket.d/*.conf",
    "/etc/systemd/system/ssh*.socket",
    "/etc/systemd/system/ssh*.socket.d/*.conf",
    "/usr/lib/systemd/system/ssh*.socket",
)
_PORT = re.compile(r"^\s*(?:Port\s+|(?:ListenAddress|ListenStream)\s*[\s=]\s*(?:\S*:)?)(\d+)\s*$", re.M | re.I)
RESOLVE = 60.0
"""Seconds between looks at the centre's name."""
_ANY = ("0.0.0.0", "::")


@dataclass(frozen=True, slots=True)
class Exempt:
    """`ports` at all addresses of this machine, `pairs` of (address, port); `words` says why, one line each."""

    ports: frozenset[int] = frozenset()
    pairs: frozenset[tuple[str, int]] = frozenset()
    words: tuple[str, ...] = ()

    def holds(self, address: str, port: int) -> bool:
        """Whether a workload's (address, port) on this machine is exempt."""
        return port in self.ports or (address, port) in self.pairs


class Exemptions:
    """Looks for them. `centre` is HOST:PORT, `more` further login ports that a setting names."""

    def __init__(self, centre: str, more: Iterable[int] = (), configured: Iterable[str] = CONFIGURED) -> None:
        self._centre = centre
        self._more = frozenset(more)
        self._configured = tuple(configured)
        self._pairs = _addresses(centre, socket.AI_NUMERICHOST)
        self.named = not self._pairs
        """Whether the centre goes by a name, whose addresses `resolve` finds."""
        self._listening: frozenset[bytes] = frozenset()
        self._logins: dict[tuple[str, int], str] = {}
        self._came: dict[tuple[str, int], str] = {}
        self.found = Exempt()

    def resolve(self) -> None:
        """Look the centre's name up, which may take long. What is not found now stays as it was."""
        self._pairs = _addresses(self._centre) or self._pairs

    def came_in(self, address: str, port: int) -> None:
        """Where the operator who changes capture has come in, whatever listens there. What is no address and port is
        nobody's way in: it comes from an environment that anybody may have written."""
        with suppress(ValueError):
            if 0 < port < 65536:
                self._came[_plain(address), port] = "the operator's own login"

    def look(self) -> Exempt:
        """What is exempt now."""
        with suppress(OSError), Sockets() as sockets:
            now = sockets.identities(1 << LISTEN)
            if now != self._listening:
                # Whoever may bind a port is not the question here, but whose socket it is: root's alone count.
                listening = {s.inode: s for s in sockets.listed(1 << LISTEN) if s.uid == 0 and s.inode}
                self._logins = dict(_logins(listening, self._configured))
                self._listening = now
        self.found = self._exempt()
        return self.found

    def expected(self) -> Exempt:
        """As `look`, for a time when sshd may not have started yet: with the ports of its configuration."""
        found = self.look()
        return replace(found, ports=found.ports | frozenset(_named(self._configured)))

    def _exempt(self) -> Exempt:
        logins = self._came | self._logins
        ports = {port for address, port in logins if address in _ANY}
        pairs = {pair for pair in logins if pair[0] not in _ANY}
        words = [
            f"port {port} at {'all addresses' if address in _ANY else address} of this machine: {who}"
            for (address, port), who in sorted(logins.items())
        ]
        words += [f"port {port} at all addresses of this machine: setting login_ports" for port in sorted(self._more)]
        words += [f"{address} port {port}: the centre" for address, port in sorted(self._pairs)]
        return Exempt(frozenset(ports | self._more), frozenset(pairs | self._pairs), tuple(dict.fromkeys(words)))


def _addresses(centre: str, flags: int = 0) -> frozenset[tuple[str, int]]:
    """Of the centre; none when its name cannot be resolved now."""
    try:
        host, port = split(centre, 15012)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    except (OSError, ValueError):
        return frozenset()
    return frozenset((_plain(str(address[0])), port) for *_, address in found)


def _plain(address: str) -> str:
    """Without the interface that link-local ones have behind them; ValueError."""
    return str(ip_address(address.partition("%")[0]))


def _logins(listening: dict[int, Sock], configured: Iterable[str]) -> Iterator[tuple[tuple[str, int], str]]:
    """((address, port), who) of root's sockets at which people log in."""
    for pid in processes():
        if (name := process_name(pid)) in PROGRAMS:
            for link in sockets_of(pid):
                if sock := listening.get(int(link[8:-1])):
                    yield sock.local, f"{Owner(pid, name)}, listens"
    named = set(_named(configured))
    waiting = {inode: s for inode, s in listening.items() if s.local[1] in named}
    for inode, owner in owners(waiting).items():
        if owner.pid == 1:
            yield waiting[inode].local, "systemd listens for ssh"


def _named(configured: Iterable[str]) -> Iterator[int]:
    for pattern in configured:
        for path in glob(pattern):
            with suppress(OSError, UnicodeDecodeError):
                found = (int(port) for port in _PORT.findall(Path(path).read_text()))
                yield from (port for port in found if 0 < port < 65536)


def logged_in_remotely(pid: int, environ: Iterable[str]) -> bool:
    """Whether the process belongs to a remote login: by its surroundings, or, since sudo clears those, its parents."""
    if {"SSH_CONNECTION", "SSH_TTY"} & set(environ):
        return True
    while pid > 1:
        if process_name(pid).startswith(("sshd", "dropbear", "mosh-server", "in.telnetd")):
            return True
        pid = _parent(pid)
    return False


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0
