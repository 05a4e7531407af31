"""Node: a machine with one agent. The centre makes it when a join token is created and fills in the address at join."""

from typing import Literal

import msgspec

from ca.resources.metadata import API_VERSION, Key, Metadata
from ca.resources.workload import Port, canonical_address


class NodeSpec(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """`address` is where other agents dial this one's tunnel port; empty until the node has joined."""

    address: str = ""
    tunnel_port: Port = 15008

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
