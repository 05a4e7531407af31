"""Culvert as its users run it: a centre, an agent on each node, workloads known by uid, everything switched on.

Capture on both nodes, ten rules of policy of which the last one allows, metrics, an access log to a file. The load
generators run as the enrolled client and dial the server's own address: nothing about them knows of a mesh.
"""

import compileall
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

import agent
import ca
import redirect
from agent.answers import ConnectionsAnswer
from agent.connections import Connection, Security, Verdict
from agent.lab import programs
from agent.lab.lab import Lab
from agent.lab.mesh import CulvertError, RunningMesh, make_mesh
from agent.lab.place import Place
from agent.lab.process import Process
from agent.lab.topology import Machine
from bench.account import Account
from bench.measures import Site
from bench.peers.objects import RULES, mesh_objects, policy
from bench.rig import CLIENT_UID, HTTP, SERVER_UID, Rig
from bench.rig import Node as RigNode
from ca.http import request

TRUST_DOMAIN = "bench.example"
ELSEWHERE = "elsewhere"
FILL_WITHIN = 600.0
"""Seconds that a large registry may take to be filled, and again to be acted on."""

Answer = TypeVar("Answer", bound=msgspec.Struct)


class NotCaptured(CulvertError):
    """Traffic reached the server, but not as the mesh carries it: figures would be those of something else."""


@dataclass(slots=True)
class CountedLab(Lab):
    """A lab whose processes are counted, by name, in cgroups that are there already."""

    accounts: dict[str, Account] = field(default_factory=dict)

    def start(
        self,
        name: str,
        place: Place,
        argv: Sequence[str | PathLike[str]],
        env: Mapping[str, str] | None = None,
    ) -> Process:
        return Lab.start(self, name, replace(place, cgroup=self.accounts[name].path), argv, env)


@dataclass(slots=True)
class Culvert:
    """`workloads` is how many more the registry holds, none of which says a word; `policies` how many more the server
    has, which allow others."""

    name: str = "culvert"
    workloads: int = 0
    policies: int = 0
    settings: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    mesh: RunningMesh | None = None
    centre: Account | None = None
    _rig: Rig | None = None

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return "this tree"

    async def start(self, rig: Rig, workers: int) -> None:
        """Found a mesh, let both nodes join, apply the objects, and wait until both agents act on them."""
        self._rig, self.notes = rig, []
        await trio.to_thread.run_sync(_install)
        self.centre = Account(rig.lab.cgroup(f"{rig.name}-centre"))
        directory = rig.lab.directory / f"{rig.name}-mesh"
        directory.mkdir(mode=0o755)
        accounts = {"centre": self.centre, rig.a.name: rig.a.account, rig.b.name: rig.b.account}
        lab = CountedLab(directory, rig.lab.topology, rig.lab.processes, rig.lab.cgroups, accounts)
        mesh = self.mesh = make_mesh(lab, _machine(rig.b, 2))
        await mesh.found(TRUST_DOMAIN)
        for number, node in enumerate((rig.a, rig.b), 1):
            await self._join(mesh, node, number, workers)
        await self._fill(mesh)
        await mesh.apply(mesh_objects(rig.a.name, rig.b.name, CLIENT_UID, SERVER_UID, rig.b.address))
        try:
            await mesh.apply(policy(TRUST_DOMAIN))
        except CulvertError as error:
            self.notes.append(f"measured without a policy, `culvert apply` does not take one yet: {error}")
        else:
            self.notes.append(f"a policy of {RULES} rules is on; the last one allows")

    async def _join(self, mesh: RunningMesh, node: RigNode, number: int, workers: int) -> None:
        member, token = await mesh.invite(node.name, _machine(node, number))
        member.settings |= {"CULVERT_AGENT_WORKERS": str(workers), "CULVERT_AGENT_LOG_LEVEL": "warning"} | self.settings
        await mesh.on(member, "agent", "join", token)
        await mesh.start_agent(member)

    async def _fill(self, mesh: RunningMesh) -> None:
        """Other workloads, on a node that is invited and never comes, and policies for others."""
        if not (self.workloads or self.policies):
            return
        began = trio.current_time()
        await mesh.operator("central", "token", "create", "--node", ELSEWHERE)
        argv = [sys.executable, "-m", "bench.fill", str(mesh.directory / "operator.json"), ELSEWHERE]
        argv += [str(self.workloads), str(self.policies)]
        done = await programs.run(Place(mesh.centre.namespace), argv, FILL_WITHIN, env=mesh.env)
        if not done.ok:
            raise CulvertError(f"the registry could not be filled: {done.errors}")
        await mesh.settled(FILL_WITHIN)
        seconds = trio.current_time() - began
        what = f"{self.workloads:,} workloads" if self.workloads else f"{self.policies:,} policies"
        self.notes.append(f"{what} were applied and acted on by both agents in {seconds:.0f} s")

    async def aim(self, port: int) -> Site:
        """Nothing to do: both ports are captured. Fails when what was just sent did not travel in a tunnel."""
        rig = self._rig
        assert rig
        site = Site(rig.b.address, port, rig.generator, (rig.a.account, rig.b.account), rig.everything)
        if port == HTTP:
            await self._captured(site)
        return site

    async def _captured(self, site: Site) -> None:
        """Send one request and look it up on both nodes, where it shows once its workers have told."""
        rig = self._rig
        assert rig
        done = await programs.run(site.place, programs.get(site.url))
        if not done.ok:
            raise NotCaptured(f"no answer through the mesh: {done.errors}")
        for side in (rig.a, rig.b):
            seen = await self._seen(side)
            wrong = [c for c in seen if c.security is not Security.MTLS or c.verdict is not Verdict.ALLOWED]
            if not seen or wrong:
                raise NotCaptured(f"{side.name} should show one connection over mTLS, and shows: {wrong or 'none'}")

    async def _seen(self, side: RigNode, patience: float = 3.0) -> list[Connection]:
        deadline = trio.current_time() + patience
        while True:
            answer = await self.ask(side, "connections", ConnectionsAnswer)
            if (seen := [*answer.live, *answer.closed]) or trio.current_time() > deadline:
                return seen
            await trio.sleep(0.05)

    async def stop(self) -> None:
        """Ask what was lost on the way to logs and metrics; the processes end with the rig, which knows them by their
        namespaces."""
        rig = self._rig
        if rig and self.mesh:
            for side in (rig.a, rig.b):
                with trio.move_on_after(5):
                    self.notes += await self._lost(side)
        self.mesh = self._rig = None

    async def _lost(self, side: RigNode) -> list[str]:
        page = await programs.run(Place(side.namespace), programs.get("http://127.0.0.1:15020/metrics"), 5)
        if not page.ok:
            return [f"{side.name} shows no metrics"]
        names = "culvert_(access_log|connection_records)_dropped_total"
        lost = re.findall(rf"^{names} ([\d.e+]+)", page.output.decode(), re.M)
        if len(lost) != 2:
            return [f"the metrics of {side.name} do not tell what was lost"]
        return [f"{side.name} lost {float(count):.0f} of its {what}" for what, count in lost if float(count)]

    async def ask(self, side: RigNode, topic: str, answer: type[Answer]) -> Answer:
        """What the agent of one side says on its admin socket, as `culvert TOPIC` asks."""
        assert self.mesh
        path = self.mesh.nodes[side.name].directory / "run/agent.sock"
        with trio.fail_after(30):
            async with await trio.open_unix_socket(path) as stream:
                response = await request(stream, "GET", f"/v1/{topic}", host="agent", max_body=2**28)
        return msgspec.json.decode(response.body, type=answer)


def _machine(node: RigNode, number: int) -> Machine:
    return Machine(node.namespace, node.address, "", number, "wire")


def _install() -> None:
    """Have bytecode beside our sources, as an installation has: compiling takes time and leaves holes in memory."""
    for package in (agent, ca, redirect):
        compileall.compile_dir(Path(package.__file__ or "").parent, quiet=1)
