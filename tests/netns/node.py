"""One mesh of two machines, as the tests of the agent want it."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import trio

from agent.lab import programs
from agent.lab.lab import Lab, open_lab
from agent.lab.mesh import Node, RunningMesh, make_mesh
from agent.lab.place import Place
from agent.lab.topology import Host, Machine
from ca.authority import Authority, Lives
from ca.client import Client
from ca.contract import ApplyRequest, ApplyResponse, LabelRequest, ResourceName
from ca.store.sqlite import SqliteStore

WEB, API = 64001, 64002
"""Uids of the two workloads of the machines."""
CAPTURED = "220 api greets 10.77.0.2\r\nho"
"""What `web` hears from `api`, by way of the mesh or without: its address is kept."""


@dataclass
class Pair:
    """Machine `one` with workload shop/web (uid WEB), machine `two` with shop/api (uid API, port 9090), a server that
    speaks first. Both are registered and not enrolled; `enrol` does that."""

    lab: Lab
    mesh: RunningMesh
    one: Node
    two: Node
    pod: Host

    # Commands are tested by name; here the calls they make are, which takes a hundredth of the time.

    @property
    def _centre(self) -> Client:
        return Client.at_socket(self.mesh.directory / "central.sock")

    async def apply(self, *documents: msgspec.Raw) -> None:
        await self._settled(await self._centre.apply(ApplyRequest(list(documents))))

    async def enrol(self, *names: str, value: str | None = "on") -> None:
        """Label them; returns when every agent that runs acts on it."""
        for name in names or ("web", "api"):
            request = LabelRequest(ResourceName("Workload", name, "shop"), {"mesh": value})
            await self._settled(await self._centre.label(request))

    async def _settled(self, done: ApplyResponse) -> None:
        async def active(node: Node) -> bool:
            return (await self.ask(node, "status"))["active"] >= done.revision

        for node in (self.one, self.two):
            if node.process and node.process.running:
                assert await soon(lambda node=node: active(node), 10), node.process.tail()

    async def shorten(self, seconds: int) -> None:
        """Give the centre an issuing certificate that lives so long, and every one after it: nothing that is signed
        from now on lives longer. (Certificates of workloads cannot be set to less than an hour.)"""
        assert self.mesh.process
        await self.mesh.process.kill()
        with SqliteStore.open(self.mesh.directory) as store:
            lives = Lives(issuing=timedelta(seconds=seconds))
            Authority.open(store, store.keys, lives).renew_issuer(datetime.now(UTC))
        self.mesh.settings["CULVERT_CENTRAL_LIVES_ISSUING"] = f"{seconds}s"
        await self.mesh.start_centre()

    async def ask(self, node: Node, topic: str) -> Any:
        """What the agent of a node says to GET /v1/TOPIC."""
        return await self.mesh.ask(node, topic)

    async def talk(self, place: Place | None = None, address: str = "", port: int = 9090) -> str:
        """What the server says to a caller, by default shop/web; empty when there is no talking."""
        place = place or Place(self.one.machine.namespace, WEB)
        ran = await programs.run(place, programs.hear(address or self.two.machine.address, port, "ho"), 10)
        return ran.output.decode() if ran.ok else ""

    async def captured(self, node: Node) -> dict[str, int]:
        """Connections that the kernel sent to the agent, by captured workload."""
        answer = await self.ask(node, "capture")
        return {row["workload"]: row.get("captured", 0) for row in answer["rows"]}

    async def rules(self, where: Machine | Host) -> str:
        """Our table in the machine's or pod's namespace, as nft prints it; empty if there is none."""
        ran = await programs.run(Place(where.namespace), ["nft", "list", "table", "inet", "culvert"])
        return ran.output.decode() if ran.ok else ""

    async def nft(self, where: Machine | Host, *command: str) -> str:
        ran = await programs.run(Place(where.namespace), ["nft", *command])
        assert ran.ok, ran.errors
        return ran.output.decode()


def workload(
    name: str,
    node: str,
    match: dict[str, object],
    *ports: int,
    address: str = "",
    source_address: str = "",
    skip_uids: tuple[int, ...] = (),
) -> msgspec.Raw:
    """A Workload, not enrolled."""
    spec: dict[str, object] = {"node": node, "serviceAccount": name, "ports": list(ports), "match": match}
    if skip_uids:
        spec["capture"] = {"out": {"skip": {"uids": list(skip_uids)}}}
    if address:
        spec["address"] = address
    if source_address:
        spec["sourceAddress"] = source_address
    return msgspec.Raw(json.dumps({"kind": "Workload", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}))


@asynccontextmanager
async def pair(
    centre_settings: dict[str, str] | None = None, runs: Collection[str] = ("one", "two")
) -> AsyncIterator[Pair]:
    """A mesh as `Pair` says, for the time of the block. Both nodes have joined, and the agents of those in `runs` run:
    the others are started by whoever has settings for them."""
    async with open_lab() as lab:
        centre, one, two = (lab.topology.machine(n) for n in ("centre", "one", "two"))
        pod = lab.topology.pod(two, "pod")
        mesh = make_mesh(lab, centre)
        mesh.settings.update(centre_settings or {})
        await mesh.found()
        async with trio.open_nursery() as nursery:
            for machine, name in ((one, "one"), (two, "two")):
                nursery.start_soon(mesh.add if name in runs else mesh.join, name, machine)
        made = Pair(lab, mesh, mesh.nodes["one"], mesh.nodes["two"], pod)
        await made.apply(
            workload("web", "one", {"uid": WEB}),
            workload("api", "two", {"uid": API}, 9090),
            workload("pod", "two", {"netns": pod.namespace.name}, 7000, address=pod.address),
        )
        server = lab.start("api", Place(two.namespace, API), programs.greeter(two.address, 9090, "api"))
        await server.listening(9090)
        yield made


async def soon(condition: Callable[[], Awaitable[bool]], seconds: float = 5.0) -> bool:
    """Whether an async condition came true in time."""
    deadline = trio.current_time() + seconds
    while trio.current_time() < deadline:
        if await condition():
            return True
        await trio.sleep(0.01)
    return False
