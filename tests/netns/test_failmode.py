"""What becomes of captured connections while the agent is away, by `failMode`: from the first moment, and told of."""

import json
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place
from tests.netns.node import WEB, Pair, pair, soon, workload

CLOSED = 64009
ANSWER = "220 api greets 10.77.0.2\r\nho"


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    """shop/web fails open, shop/closed does not; both live on machine one."""
    async with pair() as made:
        await made.apply(opened(workload("web", "one", {"uid": WEB})), workload("closed", "one", {"uid": CLOSED}))
        await made.enrol("web", "closed", "api")
        yield made


def opened(document: msgspec.Raw) -> msgspec.Raw:
    plain = json.loads(bytes(document))
    plain["spec"]["failMode"] = "open"
    return msgspec.Raw(json.dumps(plain).encode())


async def refused_at_once(two: Pair) -> bool:
    with trio.fail_after(5):  # a program has to start; the refusal itself takes no time
        place = Place(two.one.machine.namespace, CLOSED)
        argv = programs.hear(two.two.machine.address, 9090, "ho")
        ran = await programs.run(place, argv, 4)
    assert ran.status != 124
    return "refused" in ran.errors or "reset" in ran.errors


async def by_tunnel(two: Pair) -> int:
    answer = await two.ask(two.two, "connections")
    return sum(c["security"] == "mtls" for c in (*answer["live"], *answer["closed"]))


async def test_killed(two: Pair) -> None:
    assert await two.talk() == ANSWER
    assert await soon(lambda: _is(two, 1))
    process = two.one.process
    assert process is not None
    await process.kill()
    talked = await two.talk()
    assert talked.endswith("ho"), talked
    assert await refused_at_once(two)
    assert await by_tunnel(two) == 1

    await two.mesh.start_agent(two.one)
    assert await soon(lambda: _captured(two))
    assert await two.talk() == ANSWER
    assert await soon(lambda: _is(two, 2))
    rows = {r["workload"]: r for r in (await two.ask(two.one, "capture"))["rows"]}
    assert (rows["shop/web"]["fail_mode"], rows["shop/web"]["passed"]) == ("open", 1)
    assert rows["shop/closed"].get("passed", 0) == 0
    said = process_log(two)
    (line,) = (json.loads(x) for x in said.splitlines() if "passed-while-away" in x)
    assert (line["workload"], line["connections"]) == ("shop/web", 1)
    status = await two.mesh.try_on(two.one, "capture", "status")
    assert "shop/web fails open: 1 connections passed while the agent was away" in status.errors
    # It is told of once.
    await two.one.process.end(grace=10)
    await two.mesh.start_agent(two.one)
    assert await soon(lambda: _captured(two))
    assert process_log(two).count("passed-while-away") == 1  # the log goes on in the same file


async def test_stopped_in_good_order(two: Pair) -> None:
    """Passing begins when draining does: nobody falls between the two."""
    assert await two.talk() == ANSWER
    process = two.one.process
    assert process is not None
    await process.end(grace=10)
    assert (await two.talk()).endswith("ho")
    assert await refused_at_once(two)


async def test_the_mode_can_change(two: Pair) -> None:
    await two.apply(workload("web", "one", {"uid": WEB}))
    await two.enrol("web")
    assert await two.talk() == ANSWER
    process = two.one.process
    assert process is not None
    await process.kill()
    assert await two.talk() == ""


def process_log(two: Pair) -> str:
    assert two.one.process is not None
    return two.one.process.tail(200)


async def _is(two: Pair, count: int) -> bool:
    return await by_tunnel(two) == count


async def _captured(two: Pair) -> bool:
    return "shop/web" in await two.captured(two.one)
