"""Short ways to write objects."""

from ca.resources.metadata import Metadata
from ca.resources.node import Node, NodeSpec
from ca.resources.workload import Match, Workload, WorkloadSpec


def node(name: str, address: str = "", port: int = 15008) -> Node:
    return Node(metadata=Metadata(name), spec=NodeSpec(address, port))


def workload(name: str, on: str = "a", labels: dict[str, str] | None = None, uid: int | None = None) -> Workload:
    match = None if uid is None else Match(uid=uid)
    return Workload(
        metadata=Metadata(name, "shop", labels or {}), spec=WorkloadSpec(node=on, service_account=name, match=match)
    )
