"""Discovery end to end: what a node finds is registered, as far as it may, and captured like anything else."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio

from agent.lab import programs
from agent.lab.mesh import Node
from agent.lab.place import Place
from ca.client import Client
from tests.netns.node import Pair, pair, soon

FOUND = 64011
"""Uid of a caller that is registered by discovery alone."""
DB = """
kind: Workload
metadata: {namespace: found, name: db, labels: {app: db, mesh: on}}
spec: {serviceAccount: db, match: {uid: 64012}, ports: [9191]}
"""
CALLER = DB.replace("db", "caller").replace("64012", str(FOUND)).replace("[9191]", "[]")
ALLOWED = "kind: Node\nmetadata: {{name: {}}}\nspec: {{discovery: {{namespaces: {}}}}}\n"


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


def write(node: Node, name: str, text: str) -> None:
    folder = node.directory / "workloads.d"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.yaml").write_text(text)


async def allow(two: Pair, *namespaces: str) -> None:
    for name in ("one", "two"):
        await two.mesh.operator("apply", "-f", "-", stdin=ALLOWED.format(name, json.dumps(namespaces)))


async def states(two: Pair, node: Node) -> dict[str, str]:
    return {row["workload"]: row.get("state", "waiting") for row in (await two.ask(node, "discovered"))["rows"]}


async def registered(two: Pair) -> list[str]:
    centre = Client.at_socket(two.mesh.directory / "central.sock")
    listing = await centre.list("Workload", "found")
    return [json.loads(bytes(raw))["metadata"]["name"] for raw in listing.items]


def becomes(what: Callable[[], Awaitable[object]], wanted: object, seconds: float = 3.0) -> Awaitable[bool]:
    async def so() -> bool:
        return await what() == wanted

    return soon(so, seconds)


async def test_what_files_say_is_registered_captured_and_taken_back(two: Pair) -> None:
    """From the file to the kernel, and back."""
    await allow(two, "found")
    write(two.one, "caller", CALLER)
    write(two.two, "db", DB)
    assert await becomes(lambda: registered(two), ["caller", "db"])
    assert await becomes(lambda: two.captured(two.one), {"found/caller": 0}, 3)
    assert await becomes(lambda: two.captured(two.two), {"found/db": 0}, 3)
    server = two.lab.start(
        "db", Place(two.two.machine.namespace, 64012), programs.greeter(two.two.machine.address, 9191, "db")
    )
    await server.listening(9191)
    said = await two.talk(Place(two.one.machine.namespace, FOUND), port=9191)
    assert said.startswith("220 db greets")
    assert await soon(lambda: _ended(two))
    (connection,) = (await two.ask(two.two, "connections"))["closed"]
    assert connection["security"] == "mtls"
    assert connection["source"]["identity"].endswith("/ns/found/sa/caller")
    assert await states(two, two.two) == {"found/db": "registered"}
    write(two.two, "db", DB.replace("[9191]", "[9191, 9192]"))
    assert await becomes(lambda: _endpoints(two), [9191, 9192])
    (two.one.directory / "workloads.d" / "caller.yaml").unlink()
    assert await becomes(lambda: registered(two), ["db"])
    assert await becomes(lambda: two.rules(two.one.machine), "", 3)


async def _ended(two: Pair) -> bool:
    return bool((await two.ask(two.two, "connections"))["closed"])


async def _endpoints(two: Pair) -> list[int]:
    rows = (await two.ask(two.two, "workloads"))["rows"]
    (row,) = [row for row in rows if row["workload"] == "found/db"]
    return [int(e.rpartition(":")[2]) for e in row.get("endpoints", [])]


async def test_ports_that_nobody_declares_are_those_it_listens_at(two: Pair) -> None:
    await allow(two, "found")
    write(two.two, "db", DB.replace(", ports: [9191]", ""))
    assert await becomes(lambda: two.captured(two.two), {"found/db": 0}, 3)
    assert await becomes(lambda: _endpoints(two), [])
    place = Place(two.two.machine.namespace, 64012)
    server = two.lab.start("db", place, programs.greeter(two.two.machine.address, 9191, "db"))
    await server.listening(9191)
    assert await becomes(lambda: _endpoints(two), [9191])
    await server.end()
    assert await becomes(lambda: _endpoints(two), [], 4)


async def test_what_a_node_may_not_is_refused_and_shown_until_it_may(two: Pair) -> None:
    write(two.two, "db", DB)
    assert await becomes(lambda: states(two, two.two), {"found/db": "refused"}, 3)
    assert await registered(two) == []
    why = "namespace found is not among those the node may use (none)"
    table = await two.mesh.try_on(two.two, "discovered")
    assert why in table.errors
    assert table.output.decode().splitlines()[1].split() == ["found/db", "files", "uid", "64012", "9191", "refused"]
    assert why in (await two.mesh.try_on(two.two, "status")).errors
    assert await soon(lambda: _status_says(two, why))
    await allow(two, "found")
    assert await becomes(lambda: states(two, two.two), {"found/db": "registered"})
    assert await becomes(lambda: _said(two), [])
    assert await becomes(lambda: two.captured(two.two), {"found/db": 0}, 3)
    await allow(two, "other")
    assert await registered(two) == []
    assert await becomes(lambda: states(two, two.two), {"found/db": "refused"})
    assert await becomes(lambda: two.rules(two.two.machine), "", 3)


async def _said(two: Pair) -> object:
    return (await two.ask(two.two, "status"))["problems"]


async def _status_says(two: Pair, why: str) -> bool:
    return any(why in p for n in (await two.mesh.status()).nodes for p in n.problems)


async def test_an_operators_workload_stands(two: Pair) -> None:
    await allow(two, "found")
    write(two.two, "db", DB)
    assert await becomes(lambda: registered(two), ["db"])
    await two.mesh.apply(DB.replace("{serv", "{node: two, serv").replace("9191", "9193"))
    assert await becomes(lambda: states(two, two.two), {"found/db": "refused"})
    assert "an operator applied it" in (await two.ask(two.two, "discovered"))["rows"][0]["why"]
    await two.mesh.operator("delete", "workload", "found/db")
    assert await becomes(lambda: states(two, two.two), {"found/db": "registered"})
    await two.mesh.operator("label", "workload", "found/db", "tier=x", "mesh-")
    assert await becomes(lambda: two.rules(two.two.machine), "", 3)
    write(two.two, "db", DB.replace("app: db", "app: sql"))
    assert await soon(lambda: _labelled(two, {"app": "sql", "tier": "x"}), 3)


async def _labelled(two: Pair, labels: dict[str, str]) -> bool:
    centre = Client.at_socket(two.mesh.directory / "central.sock")
    (raw,) = (await centre.list("Workload", "found", "db")).items
    return bool(json.loads(bytes(raw))["metadata"]["labels"] == labels)


async def test_a_broken_file_is_named_and_the_others_go_on(two: Pair) -> None:
    await allow(two, "found")
    write(two.two, "broken", DB.replace("db", "other").replace("uid: 64012", "uid: x"))
    write(two.two, "db", DB)
    assert await becomes(lambda: registered(two), ["db"])
    ran = await two.mesh.try_on(two.two, "discovered")
    assert "broken.yaml:4: workload found/other: spec.match.uid" in ran.errors
    assert "broken.yaml:4" in (await two.mesh.try_on(two.two, "status")).errors
    write(two.two, "db", "{")
    assert await soon(lambda: _problems(two, 2))
    assert await registered(two) == ["db"]


async def _problems(two: Pair, count: int) -> bool:
    return len((await two.ask(two.two, "discovered"))["problems"]) == count


async def test_what_was_registered_stays_while_node_or_centre_is_away(two: Pair) -> None:
    await allow(two, "found")
    write(two.two, "db", DB)
    assert await becomes(lambda: two.captured(two.two), {"found/db": 0}, 3)
    process = two.two.process
    assert process
    await process.end()
    assert await registered(two) == ["db"]
    assert two.mesh.process
    await two.mesh.process.end()
    await two.mesh.start_agent(two.two)
    assert await becomes(lambda: two.captured(two.two), {"found/db": 0}, 3)
    assert await becomes(lambda: states(two, two.two), {"found/db": "waiting"})
    write(two.two, "more", DB.replace("db", "more").replace("64012", "64013").replace("9191", "9194"))
    await trio.sleep(0.2)
    await two.mesh.start_centre()
    assert await becomes(lambda: registered(two), ["db", "more"], 10)
