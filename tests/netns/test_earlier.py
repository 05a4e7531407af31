"""Connections older than enrolment: they go on, are listed, and end when somebody asks."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from agent.lab.place import Place
from tests.netns.node import API, WEB, Pair, pair, workload


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


@asynccontextmanager
async def talking(place: Place, address: str, port: int = 9090) -> AsyncIterator[trio.SocketStream]:
    """A connection to the greeter, which has said its word."""
    sock = trio.socket.from_stdlib_socket(place.socket())
    with trio.fail_after(5):
        await sock.connect((address, port))
        stream = trio.SocketStream(sock)
        assert (await stream.receive_some()).startswith(b"220")
    async with stream:
        yield stream


async def echoes(stream: trio.SocketStream) -> bool:
    with trio.fail_after(5):
        await stream.send_all(b"ping")
        return await stream.receive_some() == b"ping"


async def listed(two: Pair, *more: str) -> list[tuple[str, str]]:
    found = {}
    for node in (two.one, two.two):
        answer = json.loads(await two.mesh.on(node, "connections", "--pre-enrolment", *more, "-o", "json"))
        assert not answer.get("problems")
        found |= {(r["workload"], r["way"]): r for r in answer["rows"]}
    return sorted(found)


async def test_they_go_on_are_listed_and_end_when_asked(two: Pair) -> None:
    web = Place(two.one.machine.namespace, WEB)
    async with talking(web, two.two.machine.address) as old:
        await two.enrol()
        assert await echoes(old)
        async with talking(web, two.two.machine.address) as new:
            assert await two.captured(two.one) == {"shop/web": 1}
            assert await listed(two) == [("shop/api", "in"), ("shop/web", "out")]
            text = await two.mesh.on(two.one, "connections", "--pre-enrolment")
            assert text.splitlines()[0].split() == ["WORKLOAD", "WAY", "LOCAL", "REMOTE", "PROCESS"]
            assert max(map(len, text.splitlines())) <= 80
            ran = await two.mesh.try_on(two.one, "connections", "--pre-enrolment", "--cut")
            assert ran.errors == "1 ended"
            with pytest.raises(trio.BrokenResourceError):
                await echoes(old)
            assert await echoes(new)
            assert await listed(two) == []
            assert await echoes(new)


async def test_those_of_this_very_machine_and_of_its_namespaces(two: Pair) -> None:
    """A caller in a namespace of its own, and one by another address of the machine."""
    api = Place(two.two.machine.namespace, API)
    pod = Place(two.pod.namespace)
    async with talking(api, two.two.machine.address) as here, talking(pod, two.two.machine.address) as inside:
        await two.enrol("api", "pod")
        assert await listed(two) == [("shop/api", "in"), ("shop/api", "out"), ("shop/pod", "out")]
        # Ours are none, however many come and go.
        for _ in range(5):
            async with talking(pod, two.two.machine.address):
                pass
        assert await listed(two, "--cut") == [("shop/api", "in"), ("shop/api", "out"), ("shop/pod", "out")]
        for stream in (here, inside):
            with pytest.raises(trio.BrokenResourceError):
                await echoes(stream)
        assert await listed(two) == []


async def test_a_login_is_never_among_them(two: Pair) -> None:
    """Port 22 is nobody's business, even where root is a workload and everything is captured."""
    await two.apply(workload("rooted", "two", {"uid": 0}))
    with two.two.machine.namespace.socket() as listening:
        listening.bind((two.two.machine.address, 22))
        listening.listen()
        with two.one.machine.namespace.socket() as client:
            client.connect((two.two.machine.address, 22))
            accepted, _ = listening.accept()
            with accepted:
                await two.mesh.apply(
                    "kind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: demo.example, egress: observe}"
                )
                await two.enrol("rooted")
                assert ("shop/rooted", "in") not in await listed(two, "--cut")
                client.send(b"still")
                accepted.settimeout(5)
                assert accepted.recv(10) == b"still"


async def test_cut_alone_is_no_command(two: Pair) -> None:
    ran = await two.mesh.try_on(two.one, "connections", "--cut")
    assert ran.status == 2
    assert "--cut goes with --pre-enrolment" in ran.errors
