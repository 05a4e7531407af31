"""A port of a container that the engine publishes: what who calls it gets, and what the node says of it."""

import json

import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place
from agent.lab.sniffer import Sniffer, sniff
from tests.agent.discovery.podman import podman
from tests.netns.node import API, Pair, pair, soon

pytestmark = pytest.mark.slow

SUBNET, PORT, PUBLISHED, STRANGER = "10.77.2.0/24", 7001, 8080, 64999
GREETING = "hello from the container"
MAY = '{{"kind": "Node", "metadata": {{"name": "one"}}, "spec": {{"discovery": {}}}}}'
MESH = '{{"kind": "Mesh", "metadata": {{"name": "mesh"}}, "spec": {{"trustDomain": "{}", "mode": "{}"}}}}'


async def test_a_published_port_is_plaintext_and_judged_as_such() -> None:
    async with pair(runs=("two",)) as two, sniff(two.lab.topology, two.one.machine.port) as sniffer:
        with podman(tuple(Place(two.one.machine.namespace).command([]))) as engine, engine.network(SUBNET) as network:
            await trio.to_thread.run_sync(engine.serve)
            two.one.settings["CULVERT_AGENT_DISCOVERY_CONTAINERS"] = str(engine.socket)
            await two.mesh.start_agent(two.one)
            may = json.dumps({"namespaces": ["found"], "addresses": [SUBNET]})
            await two.mesh.apply(MAY.format(may))
            options = (f"--network={network}", f"--publish={PUBLISHED}:{PORT}")
            command = ("nc", "-ll", "-p", str(PORT), "-e", "/bin/busybox", "echo", GREETING)
            marks = {"namespace": "found", "labels": "mesh=on", "ports": str(PORT)}
            await trio.to_thread.run_sync(lambda: engine.run("box", *options, command=command, **marks))
            assert await soon(lambda: _captured(two), 10), two.one.process and two.one.process.tail()
            await two.enrol("api")
            found = json.loads(await trio.to_thread.run_sync(lambda: engine("inspect", "box")))
            (at,) = found[0]["NetworkSettings"]["Networks"].values()
            await _judge(two, sniffer, at["IPAddress"])


async def _captured(two: Pair) -> bool:
    return "found/box-one" in await two.captured(two.one)


async def _judge(two: Pair, sniffer: Sniffer, address: str) -> None:
    machine, here = two.one.machine.address, two.two.machine
    calls = {
        "published, by a stranger": (STRANGER, machine, PUBLISHED),
        "published, by the mesh": (API, machine, PUBLISHED),
        "itself, by the mesh": (API, address, PORT),
    }

    async def said() -> dict[str, str]:
        found = {}
        for name, (uid, where, port) in calls.items():
            ran = await programs.run(Place(here.namespace, uid), programs.hear(where, port, ""), 10)
            found[name] = ran.output.decode().strip() if ran.ok else ""
        return found

    sniffer.restart(GREETING.encode())
    assert await said() == dict.fromkeys(calls, GREETING)
    sniffer.drain()
    assert sniffer.leaks.clear == 2 * len(GREETING)  # what was published is read by anybody

    async def told() -> list[tuple[str, str, str]]:
        answer = await two.ask(two.one, "connections")
        records = [c for c in (*answer["live"], *answer["closed"]) if c["direction"] == "inbound"]
        return sorted(
            (c["security"], c["source"].get("identity", "")[-11:], c["destination"]["workload"]) for c in records
        )

    expected = [("mtls", "shop/sa/api", "found/box-one"), *2 * [("plaintext", "", "found/box-one")]]

    async def as_expected() -> bool:
        return await told() == expected

    assert await soon(as_expected), await told()
    await two.mesh.apply(MESH.format("demo.example", "STRICT"))
    assert await said() == {**dict.fromkeys(calls, ""), "itself, by the mesh": GREETING}

    async def refused() -> bool:
        closed = (await two.ask(two.one, "connections"))["closed"]
        return sum(c["verdict"] == "refused" and "STRICT" in c["reason"] for c in closed) == 2

    assert await soon(refused), (await two.ask(two.one, "connections"))["closed"]
