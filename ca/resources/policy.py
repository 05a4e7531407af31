"""Who may talk to whom: AuthorizationPolicy and PeerAuthentication, named and shaped as Istio's.

Scope, for both: without a namespace the whole mesh; with one, that namespace; with a selector, the workloads there
that carry its labels.

Where Istio silently widens access, we do not (docs/decisions has the list): what this layer cannot enforce is refused
here, and so is a rule that matches by accident.
"""

import enum
import ipaddress
from typing import Annotated, Literal

import msgspec

from ca.resources.mesh import Mode
from ca.resources.metadata import API_VERSION, Key, Metadata, Selector
from ca.resources.workload import Port

Values = tuple[Annotated[str, msgspec.Meta(min_length=1, max_length=512)], ...]


class Action(enum.Enum):
    """What a matching rule does. DENY is looked at first."""

    ALLOW = "ALLOW"
    DENY = "DENY"


def _check_pattern(text: str, what: str) -> None:
    """exact, prefix*, *suffix, or * for anything that is there."""
    if "*" in text.strip("*") or text.count("*") > 1:
        raise ValueError(f"{what} {text!r}: one '*' is allowed, at the beginning or the end, or alone")


def _check_network(text: str, what: str) -> None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError as error:
        raise ValueError(f"{what} {text!r} is no address and no CIDR, as in 10.0.0.0/8") from error


class Source(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Who calls. Every field that is given must match; within a field any value does.

    `principals` are identities without spiffe:// (with it they are understood too); both `principals` and
    `namespaces` take exact, prefix*, *suffix and * (has an identity at all).
    """

    principals: Values = ()
    not_principals: Values = ()
    namespaces: Values = ()
    not_namespaces: Values = ()
    ip_blocks: Values = ()
    not_ip_blocks: Values = ()

    def __post_init__(self) -> None:
        for field in ("principals", "not_principals", "namespaces", "not_namespaces"):
            for value in getattr(self, field):
                _check_pattern(value, field)
        for field in ("ip_blocks", "not_ip_blocks"):
            for value in getattr(self, field):
                _check_network(value, field)
        if not any(getattr(self, f) for f in self.__struct_fields__):
            raise ValueError("source is empty: say who, or leave `from` out for everybody")


class Operation(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What is called. Ports and addresses are those of the destination workload."""

    ports: tuple[Port, ...] = ()
    not_ports: tuple[Port, ...] = ()
    ip_blocks: Values = ()
    not_ip_blocks: Values = ()
    hosts: Values = ()
    not_hosts: Values = ()
    methods: Values = ()
    not_methods: Values = ()
    paths: Values = ()
    not_paths: Values = ()

    def __post_init__(self) -> None:
        for field in ("hosts", "not_hosts", "methods", "not_methods", "paths", "not_paths"):
            if getattr(self, field):
                raise ValueError(
                    f"{field.removeprefix('not_')} cannot be enforced: the mesh looks at connections, not at HTTP. "
                    "Use ports, or enforce it in the application"
                )
        for field in ("ip_blocks", "not_ip_blocks"):
            for value in getattr(self, field):
                _check_network(value, field)
        if not any(getattr(self, f) for f in self.__struct_fields__):
            raise ValueError("operation is empty: say which ports, or leave `to` out for all")


class From(msgspec.Struct, frozen=True):
    source: Source


class To(msgspec.Struct, frozen=True):
    operation: Operation


class Rule(msgspec.Struct, frozen=True, omit_defaults=True):
    """Matches when one of `from` and one of `to` do; a rule without either matches everything."""

    from_: tuple[From, ...] | None = msgspec.field(default=None, name="from")
    to: tuple[To, ...] | None = None

    def __post_init__(self) -> None:
        if self.from_ is not None and not self.from_:
            raise ValueError("from is an empty list: leave it out for everybody")
        if self.to is not None and not self.to:
            raise ValueError("to is an empty list: leave it out for every port")


class AuthorizationPolicySpec(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """`rules`: any of them may match; without any the policy matches nothing, so an ALLOW without rules denies all.

    `dry_run` only reports what the policy would have done.
    """

    action: Action = Action.ALLOW
    selector: Selector | None = None
    rules: tuple[Rule, ...] = ()
    dry_run: bool = False

    def __post_init__(self) -> None:
        _check_selector(self.selector)
        if self.action is Action.DENY and not self.rules:
            raise ValueError("a DENY without rules denies nothing: add a rule ({} matches everything)")


class AuthorizationPolicy(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag_field="kind"):
    """Who may connect to the workloads in scope."""

    metadata: Metadata
    spec: AuthorizationPolicySpec
    api_version: Literal["culvert/v1"] = API_VERSION

    @property
    def key(self) -> Key:
        return Key("AuthorizationPolicy", self.metadata.namespace, self.metadata.name)

    @property
    def title(self) -> str:
        """`namespace/name`, or `name` for one that holds in the whole mesh."""
        return f"{self.metadata.namespace}/{self.metadata.name}".lstrip("/")


class MutualTls(msgspec.Struct, frozen=True):
    mode: Mode


class PeerAuthenticationSpec(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """`port_level_mtls` wins over `mtls` for its ports."""

    mtls: MutualTls | None = None
    selector: Selector | None = None
    port_level_mtls: dict[str, MutualTls] = {}

    def __post_init__(self) -> None:
        _check_selector(self.selector)
        for port in self.port_level_mtls:
            if not port.isdecimal() or not 0 < int(port) < 65536:
                raise ValueError(f"portLevelMtls: {port!r} is no port")
        if self.mtls is None and not self.port_level_mtls:
            raise ValueError("neither mtls nor portLevelMtls is given: say `mtls: {mode: STRICT}`")


class PeerAuthentication(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag_field="kind"):
    """Whether the workloads in scope accept connections without an identity.

    The narrowest scope wins: workload, namespace, mesh, and last the Mesh's own mode. Where several of the same scope
    disagree, STRICT wins.
    """

    metadata: Metadata
    spec: PeerAuthenticationSpec
    api_version: Literal["culvert/v1"] = API_VERSION

    @property
    def key(self) -> Key:
        return Key("PeerAuthentication", self.metadata.namespace, self.metadata.name)

    @property
    def title(self) -> str:
        """`namespace/name`, or `name` for one that holds in the whole mesh."""
        return f"{self.metadata.namespace}/{self.metadata.name}".lstrip("/")


Policy = AuthorizationPolicy | PeerAuthentication


def _check_selector(selector: Selector | None) -> None:
    if selector is not None and not selector.match_labels:
        raise ValueError("selector is empty and would match nothing: leave it out, or give matchLabels")
