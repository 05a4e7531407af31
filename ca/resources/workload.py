"""Workload: a process group, container or address on a node that has an identity of its own."""

import enum
import ipaddress
import re
from functools import lru_cache
from typing import Annotated, Literal

import msgspec

from ca.identity import WorkloadIdentity, check_name
from ca.resources.capture import CaptureSettings, FailMode
from ca.resources.capture import Port as Port
from ca.resources.limits import Limits
from ca.resources.metadata import API_VERSION, Key, Metadata, check_labels

NEVER_CAPTURED = frozenset({22, 15000, 15001, 15006, 15008, 15012, 15014, 15020, 15021, 15053})
"""SSH and Culvert's own ports: a workload cannot claim them, and no rule ever redirects them."""

_CGROUP = re.compile(r"/?[^/\0\n]+(/[^/\0\n]+)*")


def canonical_address(text: str) -> str:
    """The one spelling of an IP address; ValueError if it is none, or one no workload can have."""
    address = ipaddress.ip_address(text)
    if address.is_unspecified or address.is_multicast or address.is_loopback or address.is_link_local:
        raise ValueError(f"address {text} is no address that another node can reach")
    if str(address) != text:
        raise ValueError(f"address {text!r} must be written {address}")
    return text


class SourceAddress(enum.Enum):
    """Whom the application of a workload sees as its caller.

    preserve        the caller's own address, where the kernel can show it; else the agent's
    agent           an address of its own machine: whatever carries the connection to it
    proxy-protocol  the agent, which begins each connection with a PROXY header (version 2): the caller and its identity
    """

    PRESERVE = "preserve"
    AGENT = "agent"
    PROXY_PROTOCOL = "proxy-protocol"


class Match(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the node recognises the workload's connections: exactly one of the fields is set.

    `uid` is a numeric user; `cgroup` a cgroup v2 path below its mount point; `netns` the path of a network
    namespace or the name of one below /run/netns; `address` a local address that nobody else uses.
    """

    uid: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)] | None = None
    cgroup: str | None = None
    netns: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        given = [f for f in self.__struct_fields__ if getattr(self, f) is not None]
        if len(given) != 1:
            raise ValueError(
                f"match needs exactly one of uid, cgroup, netns, address; it has {', '.join(given) or 'none'}"
            )
        if self.cgroup is not None and (not _CGROUP.fullmatch(self.cgroup) or ".." in self.cgroup.split("/")):
            raise ValueError(f"cgroup {self.cgroup!r} is no cgroup path, as in system.slice/web.service")
        if self.netns is not None and (not self.netns or "\0" in self.netns or ".." in self.netns.split("/")):
            raise ValueError(f"netns {self.netns!r} is neither a path nor a name below /run/netns")
        if self.address is not None:
            canonical_address(self.address)


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """That the node found the workload itself: by which `source`, and with which labels. Labels of the workload that
    differ from these are the operator's."""

    source: str
    labels: dict[str, str] = {}

    def __post_init__(self) -> None:
        check_name(self.source, "source")
        check_labels(self.labels)


class WorkloadSpec(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Where a workload runs, who it is and what it serves.

    `address` may be left out: the workload then shares its node's. `ports` are the TCP ports it serves; only these are
    captured on their way in. `match` is known to the workload's own node and the centre; elsewhere it is absent.
    `capture` says what is left alone, or never looked into, besides what the Mesh says of that.
    `fail_mode` is for the time when the node's agent is away.
    `found` stands in what a node registered by itself (see Discovery), and is kept at the centre.
    """

    node: str
    service_account: str
    address: str = ""
    ports: tuple[Port, ...] = ()
    match: Match | None = None
    found: Origin | None = None
    capture: CaptureSettings = CaptureSettings()
    source_address: SourceAddress = SourceAddress.PRESERVE
    limits: Limits = Limits()
    fail_mode: FailMode = FailMode.CLOSED

    def __post_init__(self) -> None:
        check_name(self.node, "node")
        check_name(self.service_account, "serviceAccount")
        if self.address:
            canonical_address(self.address)
        for port in self.ports:
            if port in NEVER_CAPTURED:
                raise ValueError(
                    f"port {port} is never captured (SSH and Culvert's own ports stay reachable): leave it out"
                )
        if len(set(self.ports)) != len(self.ports):
            raise ValueError("ports has a port twice")
        for port in self.capture.in_.skip.ports:
            if port not in self.ports:
                raise ValueError(
                    f"capture.in.skip.ports has {port}, which is none of ports: nothing that arrives there is captured"
                )
        if self.source_address is SourceAddress.PROXY_PROTOCOL and not self.capture.in_.skip.empty:
            raise ValueError(
                "capture.in.skip and sourceAddress proxy-protocol exclude each other: who is let past the agent could "
                "write any PROXY header"
            )
        if self.match and self.match.address and self.address and self.match.address != self.address:
            raise ValueError(f"match.address {self.match.address} is not the workload's address {self.address}")


class Workload(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag_field="kind"):
    """One enrolled or enrollable workload."""

    metadata: Metadata
    spec: WorkloadSpec
    api_version: Literal["culvert/v1"] = API_VERSION

    def __post_init__(self) -> None:
        if not self.metadata.namespace:
            raise ValueError("metadata.namespace is missing: a workload belongs to a namespace")

    @property
    def key(self) -> Key:
        return Key("Workload", self.metadata.namespace, self.metadata.name)

    @property
    def title(self) -> str:
        """`namespace/name`, the form people read and type."""
        return f"{self.metadata.namespace}/{self.metadata.name}"

    def identity(self, trust_domain: str) -> WorkloadIdentity:
        """The identity it proves in tunnels."""
        return _identity(trust_domain, self.metadata.namespace, self.spec.service_account)


@lru_cache(maxsize=65536)
def _identity(trust_domain: str, namespace: str, service_account: str) -> WorkloadIdentity:
    # Asked for with every connection; checking the names afresh each time would cost more than all the rest of it.
    return WorkloadIdentity(trust_domain, namespace, service_account)
