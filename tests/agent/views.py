"""Objects for tests: `web`, `mesh()`, `node("n1")`, and views made of them."""

import immutables
import msgspec

from agent.node.view import MeshView
from agent.snapshot import Snapshot
from ca.contract import Delta, ResourceName
from ca.resources.kinds import Resource, encode
from ca.resources.mesh import Mesh, MeshSpec, Mode
from ca.resources.metadata import Key, Metadata
from ca.resources.node import Node, NodeSpec
from ca.resources.workload import Match, Workload, WorkloadSpec


def mesh(mode: Mode = Mode.PERMISSIVE) -> Mesh:
    return Mesh(Metadata("mesh"), MeshSpec("shop.example", mode=mode))


def node(name: str, address: str = "10.0.0.1") -> Node:
    return Node(Metadata(name), NodeSpec(address))


def workload(name: str, on: str = "n1", *, enrolled: bool = True, address: str = "", ports=(80,)) -> Workload:
    return Workload(
        Metadata(name, "shop", {"mesh": "on"} if enrolled else {}), WorkloadSpec(on, name, address, tuple(ports))
    )


def view(*resources: Resource, on: str = "n1", revision: int = 1, matches: dict[str, Match] | None = None) -> MeshView:
    return MeshView(
        Snapshot(on).apply(revision, resources, ()),
        immutables.Map({Key("Workload", "shop", n): m for n, m in (matches or {}).items()}),
        "i1",
    )


def delta(revision: int, *put: Resource, delete=(), reset: bool = False, more: bool = False, incarnation="i1") -> Delta:
    names = [ResourceName(k.kind, k.name, k.namespace) for k in delete]
    return Delta(revision, incarnation, [msgspec.Raw(encode(r)) for r in put], names, reset, more)
