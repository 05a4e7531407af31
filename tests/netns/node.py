"""One mesh of two machines, as the tests of the agent want it."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from agent.lab import programs
from agent.lab.lab import Lab, open_lab
from agent.lab.mesh import Node, RunningMesh, make_mesh
from agent.lab.place import Place
from agent.lab.topology import Host, Machine

WEB, API = 64001, 64002
"""Uids of the two workloads of the machines."""


@dataclass
class Pair:
    """Machine `one` with workload shop/web (uid WEB), machine `two` with shop/api (uid API, port 9090), a server that
    speaks first. Both are registered and not enrolled; `enrol` does that."""

    lab: Lab
    mesh: RunningMesh
    one: Node
    two: Node
    pod: Host

    async def enrol(self, *names: str) -> None:
        for name in names or ("web", "api"):
            await self.mesh.label(f"shop/{name}", "mesh=on")

    async def talk(self, place: Place | None = None, address: str = "", port: int = 9090) -> str:
        """What the server says to a caller, by default shop/web; empty when there is no talking."""
        place = place or Place(self.one.machine.namespace, WEB)
        ran = await programs.run(place, programs.hear(address or self.two.machine.address, port, "ho"), 10)
        return ran.output.decode() if ran.ok else ""

    async def captured(self, node: Node) -> dict[str, int]:
        """Connections that the kernel sent to the agent, by captured workload."""
        answer = json.loads(await self.mesh.on(node, "capture", "status", "-o", "json"))
        return {row["workload"]: row.get("captured", 0) for row in answer["rows"]}

    async def rules(self, where: Machine | Host) -> str:
        """Our table in the machine's or pod's namespace, as nft prints it; empty if there is none."""
        ran = await programs.run(Place(where.namespace), ["nft", "list", "table", "inet", "culvert"])
        return ran.output.decode() if ran.ok else ""

    async def nft(self, where: Machine | Host, *command: str) -> str:
        ran = await programs.run(Place(where.namespace), ["nft", *command])
        assert ran.ok, ran.errors
        return ran.output.decode()


def workload(name: str, node: str, match: dict[str, object], *ports: int, address: str = "") -> str:
    """A Workload document, not enrolled."""
    spec = {"node": node, "serviceAccount": name, "ports": list(ports), "match": match}
    if address:
        spec["address"] = address
    return json.dumps({"kind": "Workload", "metadata": {"name": name, "namespace": "shop"}, "spec": spec}) + "\n---\n"


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    async with open_lab() as lab:
        centre, one, two = (lab.topology.machine(n) for n in ("centre", "one", "two"))
        pod = lab.topology.pod(two, "pod")
        mesh = make_mesh(lab, centre)
        await mesh.found()
        made = Pair(lab, mesh, await mesh.add("one", one), await mesh.add("two", two), pod)
        await mesh.apply(
            workload("web", "one", {"uid": WEB})
            + workload("api", "two", {"uid": API}, 9090)
            + workload("pod", "two", {"netns": pod.namespace.name}, 7000, address=pod.address)
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
    return False
