"""A centre and agents as real processes in a lab, driven by the command line as an operator would; what is only a call
to the centre or to an agent is made from here, for it needs no process.

Each machine's `culvert` finds its own settings in the environment: files of the machine are directories of the lab.
"""

import json
import os
import sys
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import trio

import agent
from agent.answers import StatusAnswer
from agent.lab import programs, world
from agent.lab.lab import Lab
from agent.lab.place import Place
from agent.lab.process import Process, eventually
from agent.lab.programs import Ran
from agent.lab.topology import Machine
from ca import http
from ca.client import Client, ClientError
from ca.contract import ApplyRequest, LabelRequest, ResourceName, Status, TokenRequest
from ca.resources import documents
from ca.resources.kinds import encode

R = TypeVar("R")
TRUST_DOMAIN = "demo.example"
WORKER_UID = 64990
"""Workers run as a user that owns nothing; in a user's world there is only the one."""

_CULVERT = [sys.executable, "-m", "agent.cli"]


class CulvertError(Exception):
    """A `culvert` command of the lab, or a call, failed; the message has what it said."""


@dataclass(slots=True)
class Node:
    """A machine with an agent. `directory` holds what would be in /var/lib and /run; `within` is a command that runs
    the agent, and what is said to it, under conditions of its own: `("prlimit", "--nofile=200")`."""

    name: str
    machine: Machine
    directory: Path
    process: Process | None = None
    settings: dict[str, str] = field(default_factory=dict)
    within: tuple[str, ...] = ()

    @property
    def env(self) -> dict[str, str]:
        """The settings of this machine's agent, as its commands find them."""
        worker = WORKER_UID if world.privilege() is world.Privilege.ROOT else 0
        return _surroundings() | {
            "CULVERT_AGENT_STATE_DIR": str(self.directory / "state"),
            "CULVERT_AGENT_RUN_DIR": str(self.directory / "run"),
            "CULVERT_AGENT_ADDRESS": self.machine.address,
            "CULVERT_AGENT_WORKER_USER": str(worker),
            "CULVERT_AGENT_WORKERS": "1",
            "CULVERT_AGENT_ACCESS_LOG": str(self.directory / "access.log"),
            "CULVERT_AGENT_DRAIN": "1s",
            "CULVERT_AGENT_DISCOVERY_SYSTEMD": "false",
            "CULVERT_AGENT_DISCOVERY_CONTAINERS": "",
            "CULVERT_AGENT_DISCOVERY_USERS": str(self.directory / "users.toml"),
            "CULVERT_AGENT_DISCOVERY_LINGER": "2s",
            "CULVERT_AGENT_DISCOVERY_FILES": str(self.directory / "workloads.d"),
            **self.settings,
        }


@dataclass(slots=True)
class RunningMesh:
    """A mesh in a lab: `centre` is the machine its centre runs on. Everything ends with the lab.

    `settings` are those of the centre, `agents` those that every node begins with."""

    lab: Lab
    centre: Machine
    directory: Path
    process: Process | None = None
    nodes: dict[str, Node] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    agents: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """Settings for the centre and for operators."""
        return _surroundings() | {"CULVERT_CENTRAL_DIR": str(self.directory), **self.settings}

    async def found(self, trust_domain: str = TRUST_DOMAIN) -> None:
        """Make the mesh and start its centre."""
        listen = f"{self.centre.address}:15012"
        await self.operator("central", "init", "--trust-domain", trust_domain, "--listen", listen)
        await self.start_centre()

    async def start_centre(self) -> None:
        """Start the centre, and return when it listens."""
        self.process = self.lab.start(
            "centre", Place(self.centre.namespace), [*_CULVERT, "central", "run"], env=self.env
        )
        await self.process.listening(15012)

    async def invite(self, name: str, machine: Machine, seconds: float = 600.0) -> tuple[Node, str]:
        """A node that has not joined yet, and the token that lets it for so long."""
        directory = self.lab.directory / name
        directory.mkdir(mode=0o755)
        node = self.nodes[name] = Node(name, machine, directory, settings=dict(self.agents))
        return node, (await self._call(self._client.create_token(TokenRequest(name, seconds)))).token

    async def join(self, name: str, machine: Machine) -> Node:
        """A node that has joined and whose agent does not run yet."""
        node, token = await self.invite(name, machine)
        await self.on(node, "agent", "join", token)
        return node

    async def add(self, name: str, machine: Machine) -> Node:
        """A node that has joined and whose agent runs."""
        node = await self.join(name, machine)
        await self.start_agent(node)
        return node

    async def start_agent(self, node: Node) -> None:
        """Start the node's agent, and return when it takes tunnels."""
        place = Place(node.machine.namespace)
        node.process = self.lab.start(node.name, place, [*node.within, *_CULVERT, "agent", "run"], env=node.env)
        await node.process.listening(15008)

    async def operator(self, *arguments: str, stdin: str = "") -> str:
        """Run `culvert ARGUMENTS` where the centre is; what it printed. CulvertError when it fails."""
        return _text(arguments, await self.try_operator(*arguments, stdin=stdin))

    async def try_operator(self, *arguments: str, stdin: str = "") -> Ran:
        """Like `operator`, for commands that may fail."""
        place = Place(self.centre.namespace)
        return await programs.run(place, [*_CULVERT, *arguments], 30, stdin=stdin.encode(), env=self.env)

    async def on(self, node: Node, *arguments: str) -> str:
        """Run `culvert ARGUMENTS` on a node; what it printed. CulvertError when it fails."""
        return _text(arguments, await self.try_on(node, *arguments))

    async def try_on(self, node: Node, *arguments: str) -> Ran:
        """Like `on`, for commands that may fail."""
        line = [*node.within, *_CULVERT, *arguments]
        return await programs.run(Place(node.machine.namespace), line, 30, env=node.env)

    async def ask(self, node: Node, topic: str) -> Any:
        """What the agent of a node says to GET /v1/TOPIC, as `culvert TOPIC -o json` shows it."""
        response = await _get(node, topic)
        if response.status != 200:
            raise CulvertError(f"{node.name} answers {response.status} when asked for {topic}: {response.body!r}")
        return json.loads(response.body)

    async def connections(self, node: Node) -> list[dict[str, Any]]:
        """What the node knows of live and recent connections, as `agent.connections.Connection` has them."""
        said = json.loads(await self.on(node, "connections", "--last", "1000", "-o", "json"))
        return [*said["live"], *said["closed"]]

    async def apply(self, text: str) -> None:
        """As `culvert apply` does, and wait until every running agent acts on it."""
        placed = documents.read([("-", text)])
        await self._call(self._client.apply(ApplyRequest([msgspec.Raw(encode(p.resource)) for p in placed])))
        await self.settled()

    async def label(self, workload: str, **labels: str | None) -> None:
        """As `culvert label workload` does (None takes one away), and wait until every running agent acts on it."""
        namespace, _, name = workload.partition("/")
        await self._call(self._client.label(LabelRequest(ResourceName("Workload", name, namespace), labels)))
        await self.settled()

    async def status(self) -> Status:
        """What the centre says of itself and its nodes."""
        return await self._client.status()

    @property
    def _client(self) -> Client:
        """At the socket of the centre's own machine."""
        return Client.at_socket(self.directory / "central.sock")

    async def _call(self, call: Awaitable[R]) -> R:
        try:
            return await call
        except ClientError as error:
            raise CulvertError(f"the centre says: {error}") from error

    async def settled(self, seconds: float = 10.0) -> None:
        """Wait until every running agent acts on the newest revision, and the centre knows it."""
        deadline = trio.current_time() + seconds
        while True:
            state = await self.status()
            reported = {n.name: n.active if n.connected else -1 for n in state.nodes}
            late = []
            for node in self.nodes.values():
                # The centre remembers what an agent reported before it was restarted, so the agent is asked as well.
                if node.process and node.process.running:
                    active = min(reported.get(node.name, -1), await self.active(node))
                    late += [f"{node.name} acts on {active}"] if active < state.revision else []
            if not late:
                return
            if trio.current_time() > deadline:
                raise CulvertError(f"revision {state.revision} is not active after {seconds:g} s: {', '.join(late)}")
            await trio.sleep(0.02)

    async def active(self, node: Node) -> int:
        """The revision that a node's agent acts on; -1 if it does not answer."""
        try:
            response = await _get(node, "status")
        except (OSError, trio.BrokenResourceError, http.HttpError):
            return -1
        return msgspec.json.decode(response.body, type=StatusAnswer).active if response.status == 200 else -1

    async def gone(self, node: Node) -> bool:
        """Whether the node's agent ends by itself soon."""
        assert node.process is not None
        process = node.process
        return await eventually(lambda: not process.running)


async def _get(node: Node, topic: str) -> http.Response:
    async with await trio.open_unix_socket(node.directory / "run" / "agent.sock") as stream:
        return await http.request(stream, "GET", f"/v1/{topic}", host="agent")


def make_mesh(lab: Lab, centre: Machine) -> RunningMesh:
    """A mesh that is not founded yet."""
    directory = lab.directory / "centre"
    return RunningMesh(lab, centre, directory)


def _surroundings() -> dict[str, str]:
    """So that `python -m agent.cli` finds this very source tree, installed or not, and its tables fit a page."""
    root = str(Path(agent.__file__).parents[1])
    rest = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": f"{root}:{rest}" if rest else root, "COLUMNS": "80"}


def _text(arguments: Sequence[str], ran: Ran) -> str:
    if not ran.ok:
        raise CulvertError(f"`culvert {' '.join(arguments)}` ended with {ran.status}: {ran.errors}")
    return ran.output.decode()
