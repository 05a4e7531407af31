"""Node: a machine with one agent. The centre makes it when a join token is created and fills in the address at join."""

import ipaddress
from typing import Literal

import msgspec

from ca.identity import check_name
from ca.resources.metadata import API_VERSION, Key, Metadata
from ca.resources.workload import Port, canonical_address

ANY = "*"
"""In a list of Discovery: every namespace, every service account."""


class Discovery(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What the node may register of what it finds on itself; nothing by default.

    `namespaces` are the ones it may use, and `service_accounts` the accounts in them; none given means any account of
    those namespaces. `addresses` are networks from which a workload may have an address of its own, as containers do;
    without one it has its node's.
    """

    namespaces: tuple[str, ...] = ()
    service_accounts: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, names in (("namespaces", self.namespaces), ("serviceAccounts", self.service_accounts)):
            for name in names:
                if name != ANY:
                    check_name(name, field)
        for network in self.addresses:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ValueError(f"addresses: {network!r} is no network, as in 172.17.0.0/16: {error}") from error

    def objection(self, namespace: str, service_account: str, address: str) -> str:
        """Why the node may not register such a workload; empty if it may."""
        if not {namespace, ANY} & {*self.namespaces}:
            return f"namespace {namespace} is not among those the node may use ({_listed(self.namespaces)})"
        if self.service_accounts and not {service_account, ANY} & {*self.service_accounts}:
            accounts = _listed(self.service_accounts)
            return f"service account {service_account} is not among those the node may use ({accounts})"
        if address and not any(_holds(network, address) for network in self.addresses):
            networks = _listed(self.addresses)
            return f"address {address} is in no network from which the node may give addresses ({networks})"
        return ""


class NodeSpec(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """`address` is where other agents dial this one's tunnel port; empty until the node has joined. `discovery` is what
    the node may register by itself; like the address it stays as it was where an applied file leaves it out."""

    address: str = ""
    tunnel_port: Port = 15008
    discovery: Discovery | None = None

    def __post_init__(self) -> None:
        if self.address:
            canonical_address(self.address)


class Node(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag_field="kind"):
    """One machine of the mesh."""

    metadata: Metadata
    spec: NodeSpec = NodeSpec()
    api_version: Literal["culvert/v1"] = API_VERSION

    def __post_init__(self) -> None:
        if self.metadata.namespace:
            raise ValueError("metadata.namespace: a node belongs to no namespace; leave it out")

    @property
    def key(self) -> Key:
        return Key("Node", "", self.metadata.name)


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "none"


def _holds(network: str, address: str) -> bool:
    return ipaddress.ip_address(address) in ipaddress.ip_network(network)
