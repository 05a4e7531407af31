"""A small mesh that the tests share: two nodes, workloads of every kind, a machine that belongs to no mesh.

one                       two                        hub   the centre
  web    uid               db     uid                far   no agent, no workload
  cart   cgroup            mail   cgroup
  front  namespace         store  namespace
                           six    namespace, reached by IPv6
                           idle   uid, known but not enrolled
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import trio

from agent.lab.lab import Lab, make_lab
from agent.lab.mesh import TRUST_DOMAIN, Node, RunningMesh, make_mesh
from agent.lab.place import Place
from agent.lab.topology import Machine
from tests.netns import traffic

STRANGER = 64999
"""A uid that is nobody's workload."""


@dataclass(frozen=True)
class Resident:
    """One workload: where its programs run and where it serves."""

    name: str
    node: str
    place: Place
    match: str
    address: str
    port: int
    own_address: bool = False
    enrolled: bool = True

    @property
    def workload(self) -> str:
        return f"shop/{self.name}"

    @property
    def identity(self) -> str:
        return f"spiffe://{TRUST_DOMAIN}/ns/shop/sa/{self.name}"

    @property
    def server(self) -> Place:
        """Where a server of ours can be put for it: what is captured on its way in is told by the port alone."""
        return Place(self.place.namespace, self.place.uid)

    def yaml(self, enrolled: bool | None = None) -> str:
        mesh = ', mesh: "on"' if (self.enrolled if enrolled is None else enrolled) else ""
        address = f', address: "{self.address}"' if self.own_address else ""
        return (
            "apiVersion: culvert/v1\nkind: Workload\n"
            f"metadata: {{namespace: shop, name: {self.name}, labels: {{app: {self.name}{mesh}}}}}\n"
            f"spec: {{node: {self.node}, serviceAccount: {self.name}, ports: [{self.port}]{address}, "
            f"match: {{{self.match}}}}}\n"
        )


@dataclass
class Town:
    """The mesh and who lives in it; tests must leave it as they found it."""

    lab: Lab
    mesh: RunningMesh
    one: Machine
    two: Machine
    far: Machine
    residents: dict[str, Resident]

    def __getitem__(self, name: str) -> Resident:
        return self.residents[name]

    def node(self, resident: Resident | str) -> Node:
        return self.mesh.nodes[resident if isinstance(resident, str) else resident.node]

    async def records(self, node: str, **facts: object) -> list[dict[str, Any]]:
        """The node's connections for which each fact holds; `source__identity` reaches inwards."""
        said = await self.mesh.ask(self.mesh.nodes[node], "connections")
        return [c for c in (*said["live"], *said["closed"]) if all(_fact(c, key) == facts[key] for key in facts)]

    async def record(self, node: str, state: str = "", **facts: object) -> dict[str, Any]:
        """The newest such connection, once it is in that state: one from before is never taken for it. Waits, since a
        worker hears of an end in its own time."""
        newest: dict[str, Any] | None = None
        with trio.move_on_after(10):
            while True:
                newest = max(await self.records(node, **facts), key=lambda c: c["opened"], default=None)
                if newest and state in ("", newest.get("state")):
                    return newest
                await trio.sleep(0.01)
        last = (await self.records(node))[-3:]
        raise AssertionError(f"{node}: no {state} connection with {facts}: it is {newest}; the last of all are {last}")

    @asynccontextmanager
    async def conversation(
        self, caller: str, server: str, handler: traffic.Handler
    ) -> AsyncIterator[trio.SocketStream]:
        """One connection between two residents, `handler` at the far end."""
        source, destination = self[caller], self[server]
        async with (
            traffic.serving(destination.server, destination.address, destination.port, handler),
            await traffic.dial(source.place, destination.address, destination.port) as stream,
        ):
            yield stream

    @asynccontextmanager
    async def mode(self, mode: str = "PERMISSIVE", egress: str = "bypass") -> AsyncIterator[None]:
        """The mesh in a mode, and in an egress mode, for the time of the block."""
        await self.mesh.apply(_mesh(mode, egress))
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self.mesh.apply(_mesh("PERMISSIVE", "bypass"))


def _fact(record: Any, key: str) -> object:
    for part in key.split("__"):
        record = record.get(part, "") if isinstance(record, dict) else ""
    return record


def _mesh(mode: str, egress: str) -> str:
    return (
        "apiVersion: culvert/v1\nkind: Mesh\nmetadata: {name: mesh}\n"
        f"spec: {{trustDomain: {TRUST_DOMAIN}, mode: {mode}, egress: {egress}}}\n"
    )


@contextmanager
def town(workers: int = 0) -> Iterator[Town]:
    """A running town for the time of the block; so many workers on each node, 0 for one a core. It is not bound to an
    event loop: a fixture of a whole module can hold it."""
    lab = make_lab()
    try:
        yield trio.run(_settle, lab, workers)
    finally:
        trio.run(lab.close)


async def _settle(lab: Lab, workers: int) -> Town:
    one, two, hub, far = (lab.topology.machine(name) for name in ("one", "two", "hub", "far"))
    residents = {r.name: r for r in _residents(lab, one, two)}
    found = Town(lab, make_mesh(lab, hub), one, two, far, residents)
    found.mesh.agents["CULVERT_AGENT_WORKERS"] = str(workers)
    await found.mesh.found()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(found.mesh.add, "one", one)
        nursery.start_soon(found.mesh.add, "two", two)
    await found.mesh.apply("---\n".join(r.yaml() for r in residents.values()))
    return found


def _residents(lab: Lab, one: Machine, two: Machine) -> Iterator[Resident]:
    def user(name: str, node: str, machine: Machine, uid: int, port: int, enrolled: bool = True) -> Resident:
        place = Place(machine.namespace, uid)
        return Resident(name, node, place, f"uid: {uid}", machine.address, port, enrolled=enrolled)

    def unit(name: str, node: str, machine: Machine, port: int) -> Resident:
        cgroup = lab.cgroup(f"{name}.service")
        place = Place(machine.namespace, None, cgroup)
        return Resident(name, node, place, f"cgroup: {cgroup}", machine.address, port)

    def pod(name: str, node: str, machine: Machine, port: int, v6: bool = False) -> Resident:
        host = lab.topology.pod(machine, name)
        address = host.address6 if v6 else host.address
        return Resident(name, node, Place(host.namespace), f"netns: {host.namespace.name}", address, port, True)

    yield user("web", "one", one, 64101, 8101)
    yield unit("cart", "one", one, 8102)
    yield pod("front", "one", one, 8103)
    yield user("db", "two", two, 64201, 8201)
    yield unit("mail", "two", two, 8202)
    yield pod("store", "two", two, 8203)
    yield pod("six", "two", two, 8204, v6=True)
    yield user("idle", "two", two, 64301, 8301, enrolled=False)
