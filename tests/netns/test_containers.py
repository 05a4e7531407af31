"""A container that Podman runs, found by its labels, and captured in its own network namespace."""

import json
import sys

import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place
from tests.agent.discovery.podman import podman
from tests.netns.node import pair
from tests.netns.test_discovery import CALLER, FOUND, becomes, registered, states, write

pytestmark = pytest.mark.slow

MAY = '{{"kind": "Node", "metadata": {{"name": "{}"}}, "spec": {{"discovery": {}}}}}'
LISTEN = ("nc", "-ll", "-p", "7001", "-e", "/bin/busybox", "echo", "hello from inside")
CALL = "import socket, sys; s = socket.create_connection((sys.argv[1], 7001), 5); print(s.makefile().read())"


async def test_a_container_is_found_captured_and_followed_over_a_restart() -> None:
    async with pair(runs=("one",)) as two:
        with podman(tuple(Place(two.two.machine.namespace).command([]))) as engine:
            await trio.to_thread.run_sync(engine.serve)
            two.two.settings["CULVERT_AGENT_DISCOVERY_CONTAINERS"] = str(engine.socket)
            await two.mesh.start_agent(two.two)
            for name in ("one", "two"):
                may = json.dumps({"namespaces": ["found"]})
                await two.mesh.apply(MAY.format(name, may))
            write(two.one, "caller", CALLER)
            place = f"--network=ns:{two.pod.namespace.path}"
            marks = {"namespace": "found", "labels": "mesh=on", "service_account": "box", "address": two.pod.address}
            await trio.to_thread.run_sync(lambda: engine.run("box", place, command=LISTEN, **marks))
            assert await becomes(lambda: states(two, two.two), {"found/box-two": "refused"}, 5)
            (row,) = (await two.ask(two.two, "discovered"))["rows"]
            assert "is in no network from which the node may give addresses (none)" in row["why"]

            may = json.dumps({"namespaces": ["found"], "addresses": [f"{two.pod.address}/32"]})
            await two.mesh.apply(MAY.format("two", may))
            assert await becomes(lambda: registered(two), ["box-two", "caller"], 3)
            assert await becomes(lambda: two.captured(two.two), {"found/box-two": 0}, 3)
            (row,) = (await two.ask(two.two, "discovered"))["rows"]
            assert (row["source"], row["ports"], row["recognised"].split()[0]) == ("containers", [7001], "netns")
            assert await becomes(lambda: two.captured(two.one), {"found/caller": 0}, 3)

            async def said() -> str:
                caller = Place(two.one.machine.namespace, FOUND)
                ran = await programs.run(caller, [sys.executable, "-c", CALL, two.pod.address], 10)
                return ran.output.decode().strip()

            assert await said() == "hello from inside"

            async def identities() -> list[tuple[str, str]]:
                closed = (await two.ask(two.two, "connections"))["closed"]
                return [(c["source"]["identity"][-15:], c["destination"]["identity"][-12:]) for c in closed]

            assert await becomes(identities, [("found/sa/caller", "found/sa/box")])
            await trio.to_thread.run_sync(lambda: engine("restart", "--time", "0", "box"))
            assert await becomes(lambda: states(two, two.two), {"found/box-two": "registered"}, 3)
            assert await becomes(said, "hello from inside", 5)
