"""Calls that never leave the node are judged like any other, by whichever of its addresses they go."""

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place
from tests.netns import traffic
from tests.netns.town import STRANGER, Town

HELLO = b"220 hello\r\n"
DENY = """\
kind: AuthorizationPolicy
metadata: {{namespace: shop, name: no-{0}}}
spec:
  action: DENY
  selector: {{matchLabels: {{app: {1}}}}}
  rules: [{{from: [{{source: {{principals: [demo.example/ns/shop/sa/{0}]}}}}]}}]
"""


def addresses(town: Town, name: str) -> dict[str, str]:
    """Every way to call a resident of the node from the node itself."""
    resident = town[name]
    if resident.own_address:
        return {"own": resident.address}
    return {"node": town.one.address, "node6": town.one.address6, "loopback": "127.0.0.1", "loopback6": "::1"}


@asynccontextmanager
async def served(town: Town, name: str) -> AsyncIterator[list[traffic.Served]]:
    """A resident's server, bound to every address of its place."""
    resident = town[name]
    async with (
        traffic.serving(resident.server, "0.0.0.0", resident.port, traffic.greet(HELLO)) as v4,
        traffic.serving(resident.server, "::", resident.port, traffic.greet(HELLO)) as v6,
    ):
        yield [v4, v6]


@asynccontextmanager
async def denied(town: Town, caller: str, server: str) -> AsyncIterator[None]:
    await town.mesh.apply(DENY.format(caller, server))
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await town.mesh.operator("delete", "authorizationpolicy", f"shop/no-{caller}")
            await town.mesh.settled()


async def said(place: Place, address: str, port: int) -> bytes:
    """What a program there hears; nothing when it is refused."""
    ran = await programs.run(place, programs.hear(address, port, "word"))
    return ran.output if ran.ok else b""


@pytest.mark.parametrize(("caller", "server"), [*itertools.permutations(["web", "cart", "front"], 2)])
async def test_by_every_address_with_identity_and_policy(town: Town, caller: str, server: str) -> None:
    source, destination = town[caller], town[server]
    ways = addresses(town, server)
    if source.place.namespace != town.one.namespace:
        # From inside, loopback is another one, and the node's other addresses are as strange as on any other machine.
        ways = {name: address for name, address in ways.items() if name in ("own", "node")}
    async with served(town, server) as servers:
        for way, address in ways.items():
            assert await said(source.place, address, destination.port) == HELLO + b"word", way
            for direction in ("outbound", "inbound"):
                record = await town.record("one", direction=direction, destination__workload=destination.workload)
                assert record["source"]["identity"] == source.identity, (way, direction)
                assert record["destination"]["identity"] == destination.identity, (way, direction)
                assert record["security"] == "local", way
        came = sum(len(s.peers) for s in servers)
        async with town.mode("STRICT"):
            for way, address in ways.items():
                assert await said(source.place, address, destination.port) == HELLO + b"word", way
            async with denied(town, caller, server):
                for way, address in ways.items():
                    assert await said(source.place, address, destination.port) == b"", way
                    record = await town.record("one", direction="inbound", destination__workload=destination.workload)
                    assert record["reason"] == f"denied by policy shop/no-{caller} rule 1", way
        assert sum(len(s.peers) for s in servers) == came + len(ways)


@pytest.mark.parametrize("server", ["web", "cart"])
async def test_by_an_address_that_the_mesh_does_not_know_a_neighbour_is_a_stranger(town: Town, server: str) -> None:
    front, destination = town["front"], town[server]
    async with served(town, server):
        assert await said(front.place, town.one.address6, destination.port) == HELLO + b"word"
        record = await town.record("one", direction="inbound", destination__workload=destination.workload)
        assert (record["security"], record["source"].get("identity", "")) == ("plaintext", "")
        async with town.mode("STRICT"):
            assert await said(front.place, town.one.address6, destination.port) == b""


@pytest.mark.parametrize("server", ["web", "cart"])
async def test_of_somebody_without_identity(town: Town, server: str) -> None:
    """A user who is nobody's workload, by every address."""
    destination = town[server]
    stranger = Place(town.one.namespace, STRANGER)
    async with served(town, server) as servers:
        for way, address in addresses(town, server).items():
            assert await said(stranger, address, destination.port) == HELLO + b"word", way
            record = await town.record("one", direction="inbound", destination__workload=destination.workload)
            assert (record["security"], record["source"].get("identity", "")) == ("plaintext", ""), way
        came = sum(len(s.peers) for s in servers)
        async with town.mode("STRICT"):
            for way, address in addresses(town, server).items():
                assert await said(stranger, address, destination.port) == b"", way
        assert sum(len(s.peers) for s in servers) == came


@pytest.mark.parametrize("name", ["web", "cart", "front"])
async def test_of_a_workload_to_itself(town: Town, name: str) -> None:
    """Told apart from a stranger's even there: a policy may forbid it."""
    resident = town[name]
    ways = {**addresses(town, name), "loopback": "127.0.0.1", "loopback6": "::1"}
    async with served(town, name) as servers:
        for way, address in ways.items():
            assert await said(resident.place, address, resident.port) == HELLO + b"word", way
            record = await town.record("one", direction="inbound", destination__workload=resident.workload)
            assert record["source"]["identity"] == record["destination"]["identity"] == resident.identity, way
        came = sum(len(s.peers) for s in servers)
        async with denied(town, name, name):
            for way, address in ways.items():
                assert await said(resident.place, address, resident.port) == b"", way
        assert sum(len(s.peers) for s in servers) == came
