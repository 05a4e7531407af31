"""What can be set on a node: /etc/culvert/agent.toml, CULVERT_AGENT_* and the flags of `culvert agent run`."""

import ipaddress
import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from ca.duration import Duration
from ca.resources.workload import NEVER_CAPTURED, Port
from ca.settings import HEX, Loaded, Seconds, load
from redirect.desired import Marks

FILE = Path("/etc/culvert/agent.toml")
PREFIX = "CULVERT_AGENT_"

_MARKS = Marks()


def _doc(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


_MARK = msgspec.Meta(ge=1, le=2**32 - 1, extra=HEX)


class MarkSettings(msgspec.Struct, frozen=True):
    """The numbers shared with everybody else's rules; change them only if something else uses these."""

    agent: Annotated[int, _MARK, _doc("On every packet the agent sends.")] = _MARKS.agent
    spoof: Annotated[int, _MARK, _doc("On those from a foreign source.")] = _MARKS.spoof
    mask: Annotated[int, _MARK, _doc("The bits that are ours.")] = _MARKS.mask
    rule_priority: Annotated[int, msgspec.Meta(ge=1, le=32765), _doc("Of the routing rules for spoofed sources.")] = (
        _MARKS.rule_priority
    )
    nat_priority: Annotated[
        int, msgspec.Meta(ge=-149, le=-1), _doc("Of the chains that redirect; container engines have -100.")
    ] = _MARKS.nat_priority
    route_table: Annotated[int, msgspec.Meta(ge=256, le=2**32 - 1), _doc("Table for answers to spoofed ones.")] = (
        _MARKS.route_table
    )


class DiscoverySettings(msgspec.Struct, frozen=True):
    """Where the node looks for workloads of its own; what of them it may register, an operator says at the centre."""

    files: Annotated[str, _doc("Directory of Workloads in YAML; empty: none.")] = "/etc/culvert/workloads.d"
    systemd: Annotated[bool, _doc("Whether units with a section [X-Culvert] are workloads.")] = True
    containers: Annotated[tuple[Path, ...], _doc("Sockets with the Docker API, of Docker and Podman.")] = (
        Path("/run/docker.sock"),
        Path("/run/podman/podman.sock"),
    )
    hold: Annotated[
        bool, _doc("Whether what a new container sends to the mesh waits until it is known whose it is.")
    ] = True
    users: Annotated[str, _doc("File that says which users are workloads; empty: none.")] = "/etc/culvert/users.toml"
    linger: Annotated[Seconds, _doc("How long a port that nobody declared stays without a listener.")] = Duration(60)


class AgentSettings(msgspec.Struct, frozen=True):
    """All settings of one agent."""

    state_dir: Annotated[Path, _doc("Keys, certificates and the last view; must survive a reboot.")] = Path(
        "/var/lib/culvert/agent"
    )
    seal: Annotated[str, _doc("File with the secret that seals keys; empty: the credential culvert-seal, if any.")] = ""
    run_dir: Annotated[Path, _doc("Where the admin socket is made.")] = Path("/run/culvert")
    socket: Annotated[str, _doc("The admin socket; empty: agent.sock in run_dir.")] = ""
    centre: Annotated[str, _doc("HOST:PORT of the centre; empty: the one of the join token.")] = ""
    address: Annotated[str, _doc("Where other agents dial this one; empty: the source towards the centre.")] = ""
    tunnel_port: Annotated[Port, _doc("Port for other agents' tunnels.")] = 15008
    workers: Annotated[int, msgspec.Meta(ge=0, le=256), _doc("Worker processes; 0: one for each core.")] = 0
    busy_poll: Annotated[
        int,
        msgspec.Meta(ge=0, le=1000),
        _doc("Microseconds a busy worker looks for more before it sleeps; 0: always sleep."),
    ] = 300
    worker_user: Annotated[str, _doc("User, by name or number, that workers run as.")] = "culvert"
    capture_ports: Annotated[str, _doc("Loopback ports for captured connections, one a workload.")] = "15100-15999"
    metrics: Annotated[str, _doc("IP:PORT for Prometheus; empty: none.")] = "127.0.0.1:15020"
    readiness: Annotated[str, _doc("IP:PORT for readiness checks; empty: none.")] = "127.0.0.1:15021"
    login_ports: Annotated[
        tuple[Port, ...], _doc("Ports of this machine where people log in, besides 22 and those of sshd.")
    ] = ()
    access_log: Annotated[str, _doc("File for one line a connection; '-': stdout, empty: none.")] = "-"
    log_level: Annotated[str, _doc("debug, info, warning or error.")] = "info"
    overtime: Annotated[Seconds, _doc("How long connections may outlive the certificates of their tunnel.")] = Duration(
        86400
    )
    max_skew: Annotated[Seconds, _doc("How far this clock may be from the centre's; beyond it, no certificates.")] = (
        Duration(120)
    )
    drain: Annotated[Seconds, _doc("How long connections may finish when the agent stops.")] = Duration(5)
    marks: MarkSettings = MarkSettings()
    discovery: DiscoverySettings = DiscoverySettings()

    def __post_init__(self) -> None:
        self.port_range()
        marks = self.marks
        if not (marks.agent ^ marks.spoof) & marks.mask:
            raise ValueError("marks.agent and marks.spoof are the same under marks.mask: each tells its packets apart")
        for name in ("metrics", "readiness"):
            if value := getattr(self, name):
                endpoint(value, name)
        if self.address:
            try:
                ipaddress.ip_address(self.address)
            except ValueError as e:
                raise ValueError(f"address {self.address!r} is no IP address, as in 10.0.0.5") from e
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level {self.log_level!r}: use debug, info, warning or error")

    @property
    def admin_socket(self) -> Path:
        """Where the agent answers `culvert workloads` and the like."""
        return Path(self.socket) if self.socket else self.run_dir / "agent.sock"

    @property
    def worker_count(self) -> int:
        """How many workers to start."""
        return self.workers or len(os.sched_getaffinity(0))

    @property
    def packet_marks(self) -> Marks:
        """The marks in the words of `redirect`."""
        m = self.marks
        return Marks(m.agent, m.spoof, m.mask, m.route_table, m.rule_priority, m.nat_priority)

    def port_range(self) -> range:
        """The capture ports; ValueError if they cannot be used."""
        match = re.fullmatch(r"(\d{1,5})-(\d{1,5})", self.capture_ports)
        if match is None or not 1024 <= int(match[1]) <= int(match[2]) <= 65535:
            raise ValueError(f"capture_ports {self.capture_ports!r} is no range of ports, as in 15100-15999")
        ports = range(int(match[1]), int(match[2]) + 1)
        if taken := sorted(p for p in {*NEVER_CAPTURED, self.tunnel_port} if p in ports):
            raise ValueError(f"capture_ports {self.capture_ports} holds port {taken[0]}, which has another use")
        return ports


def load_settings(
    environ: Mapping[str, str], flags: Mapping[str, object] | None = None, file: Path | None = None
) -> Loaded[AgentSettings]:
    """The settings that hold. `file` is one the user named, and must then exist. Raises SettingsError."""
    return load(
        AgentSettings, file=file or FILE, environ=environ, flags=flags, must_exist=file is not None, prefix=PREFIX
    )


def endpoint(text: str, name: str = "address") -> tuple[str, int]:
    """IP:PORT, IPv6 in brackets -> (ip, port); ValueError otherwise."""
    host, _, port = text.rpartition(":")
    try:
        return str(ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))), _port(port)
    except ValueError as error:
        raise ValueError(f"{name} {text!r} is no IP:PORT, as in 127.0.0.1:15020 or [::1]:15020") from error


def _port(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) <= 65535:
        raise ValueError(text)
    return int(text)


class AccountError(Exception):
    """The workers' user cannot be used; the message says what to do."""


def worker_account(user: str, uid_map: str = "/proc/self/uid_map") -> tuple[int, int]:
    """(uid, gid) that workers run as. Raises AccountError.

    Our own uid would leave the workers' parser with our rights, so it is refused; only a user namespace with a single
    id has no other.
    """
    try:
        uid, gid = (int(user), int(user)) if user.isdigit() else pwd.getpwnam(user)[2:4]
    except KeyError:
        raise AccountError(
            f"worker_user {user!r}: there is no such user; make it with `systemd-sysusers` "
            f"or `useradd --system --no-create-home --shell /usr/sbin/nologin {user}`"
        ) from None
    if user.isdigit():
        try:
            gid = pwd.getpwuid(uid).pw_gid
        except KeyError:
            gid = uid
    if uid == os.geteuid() and not _single_id(uid_map):
        raise AccountError(
            f"worker_user {user!r} is the agent's own user (uid {uid}): workers read what strangers send and need one "
            "of their own"
        )
    return uid, gid


def _single_id(uid_map: str) -> bool:
    with open(uid_map) as lines:
        return sum(int(line.split()[2]) for line in lines) == 1
