"""A revoked identity, certificate or node is refused everywhere within a second, and ends what it has open."""

import json
from collections.abc import AsyncIterator

import pytest
import trio

from agent.lab.place import Place
from tests.netns.node import CAPTURED, WEB, Pair, pair, soon
from tests.netns.traffic import dial


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair() as made:
        await made.enrol()
        yield made


async def _exhausted(stream: trio.SocketStream) -> None:
    while await stream.receive_some(4096):
        pass


@pytest.mark.parametrize("name", ["web", "api"], ids=["the caller", "the called"])
async def test_a_revoked_workload_neither_calls_nor_is_called(two: Pair, name: str) -> None:
    place = Place(two.one.machine.namespace, WEB)
    live = await dial(place, two.two.machine.address, 9090)
    async with live:
        assert await live.receive_some(4096)
        await two.mesh.operator("ca", "revoke", "workload", f"shop/{name}", "--reason", "key lost")
        with trio.fail_after(3), pytest.raises(trio.BrokenResourceError):
            await _exhausted(live)
    assert await two.talk() == ""

    async def refused() -> bool:
        connections = (await two.ask(two.one, "connections"))["closed"]
        return any("is revoked (key lost)" in c.get("reason", "") for c in connections)

    assert await soon(refused)
    await two.mesh.operator("ca", "unrevoke", "workload", f"shop/{name}")

    async def again() -> bool:
        return await two.talk() == CAPTURED

    assert await soon(again)


@pytest.mark.parametrize(("node", "account"), [("one", "web"), ("two", "api")], ids=["the caller's", "the called's"])
async def test_a_revoked_certificate_is_no_good_and_its_successor_is(two: Pair, node: str, account: str) -> None:
    """What stands on it ends; the node that held it asks for another by itself, and all goes on."""
    serial = await _serial(two, node, account)
    live = await dial(Place(two.one.machine.namespace, WEB), two.two.machine.address, 9090)
    async with live:
        assert await live.receive_some(4096)
        await two.mesh.operator("ca", "revoke", "serial", serial, "--reason", "copied")
        with trio.fail_after(3), pytest.raises(trio.BrokenResourceError):
            await _exhausted(live)

    async def recorded() -> bool:
        closed = [c for n in (two.one, two.two) for c in (await two.ask(n, "connections"))["closed"]]
        return any(c.get("reason") == f"certificate {serial} is revoked (copied)" for c in closed)

    async def again() -> bool:
        return await two.talk() == CAPTURED and await _serial(two, node, account) != serial

    assert await soon(recorded)  # by whoever heard of it first: the other may see no more than a goodbye
    assert await soon(again)


async def _serial(two: Pair, node: str, account: str) -> str:
    rows = (await two.ask(two.one if node == "one" else two.two, "certificates"))["rows"]
    return next(str(r["serial"]).lower() for r in rows if r["identity"].endswith(f"/sa/{account}"))


async def test_a_revoked_node_is_sent_away(two: Pair) -> None:
    await two.mesh.operator("ca", "revoke", "node", "one")

    async def away() -> bool:
        return not (await two.ask(two.one, "status"))["connected"]

    assert await soon(away)
    listed = json.loads(await two.mesh.operator("get", "revocations", "-o", "json"))
    assert listed[0]["spec"]["identity"] == "spiffe://demo.example/node/one"
