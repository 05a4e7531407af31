"""What becomes of captured connections while the agent is away, by `failMode`: from the first moment, and told of."""

import json
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place, create_cgroup, remove_cgroup
from tests.netns.node import CAPTURED, WEB, Pair, pair, soon, workload
from tests.promises import not_even_once

CLOSED = 64009


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
    with not_even_once():
        assert ran.output == b""
    assert ran.status != 124
    return "refused" in ran.errors or "reset" in ran.errors


async def by_tunnel(two: Pair) -> int:
    answer = await two.ask(two.two, "connections")
    return sum(c["security"] == "mtls" for c in (*answer["live"], *answer["closed"]))


async def test_killed(two: Pair) -> None:
    assert await two.talk() == CAPTURED
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
    assert await two.talk() == CAPTURED
    assert await soon(lambda: _is(two, 2))
    rows = {r["workload"]: r for r in (await two.ask(two.one, "capture"))["rows"]}
    assert (rows["shop/web"]["fail_mode"], rows["shop/web"]["passed"]) == ("open", 1)
    with not_even_once():
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


async def test_units(parent: str) -> None:
    """One that goes on is counted as itself; the new cgroup of one that is restarted meanwhile could be anybody's."""
    cgroup = f"{parent}/unit.service"
    async with pair() as two:
        place = Place(two.one.machine.namespace, cgroup=cgroup)
        create_cgroup(cgroup)
        await two.apply(opened(workload("unit", "one", {"cgroup": cgroup})))
        await two.enrol("unit", "api")
        assert await two.talk(place) == CAPTURED
        await killed(two)
        assert (await two.talk(place)).endswith("ho")
        remove_cgroup(cgroup)
        create_cgroup(cgroup)
        for _ in range(2):
            assert (await two.talk(place)).endswith("ho")
        assert await by_tunnel(two) == 1
        await back(two, "shop/unit")
        assert await two.talk(place) == CAPTURED
        answer = await two.ask(two.one, "capture")
        assert (answer["rows"][0]["passed"], answer["unnamed"]) == (1, {"units": 2, "containers": 0})
        await says(two, ("new units", 2), ("shop/unit", 1))
        await told_of(two, "passed while the agent was away: 2 connections of new units")
        page = await metrics(two)
        assert 'culvert_passed_unnamed_connections_total{of="units"} 2.0' in page
        assert 'culvert_passed_connections_total{workload="shop/unit"} 1.0' in page
        await once_only(two, "shop/unit")


async def test_a_closed_unit_closes_to_all_that_are_new(parent: str) -> None:
    """It could be this one, whoever its user is."""
    async with pair() as two:
        names = [f"{parent}/{name}.service" for name in ("unit", "closed")]
        await two.apply(opened(workload("unit", "one", {"cgroup": names[0]})))
        await two.apply(opened(workload("web", "one", {"uid": WEB})), workload("closed", "one", {"cgroup": names[1]}))
        await two.enrol("unit", "web", "closed", "api")
        await killed(two)
        create_cgroup(names[0])
        for uid in (None, WEB):
            assert await two.talk(Place(two.one.machine.namespace, uid, names[0])) == ""
        assert (await two.talk()).endswith("ho")  # in the cgroup that it had
        await back(two, "shop/web")
        await says(two, ("shop/web", 1))


async def test_in_a_namespace_of_its_own() -> None:
    async with pair() as two:
        box = two.lab.topology.pod(two.one.machine, "box")
        place = Place(box.namespace)
        match: dict[str, object] = {"netns": box.namespace.name}
        await two.apply(opened(workload("box", "one", match, address=box.address)))
        await two.enrol("box", "api")
        assert (await two.talk(place)).startswith("220 api")
        assert await soon(lambda: _is(two, 1))
        await killed(two)
        assert (await two.talk(place)).endswith("ho")
        assert await by_tunnel(two) == 1
        # Its own table has counted that. After a boot it has none, and the machine's counts.
        await back(two, "shop/box")
        await says(two, ("shop/box", 1))
        await killed(two)
        for where in (box, two.one.machine):
            await two.nft(where, "flush", "ruleset")
        await two.mesh.on(two.one, "capture", "guard")
        await two.nft(box, "delete", "table", "inet", "culvert")
        for _ in range(2):
            assert (await two.talk(place)).endswith("ho")
        await back(two, "shop/box")
        await says(two, ("shop/box", 1), ("new containers", 2))
        assert (await two.ask(two.one, "capture"))["unnamed"] == {"units": 0, "containers": 2}
        await told_of(two, "passed while the agent was away: 2 connections of new containers")
        await once_only(two, "shop/box")


async def test_who_became_closed_meanwhile_is_told_of_all_the_same(two: Pair) -> None:
    await killed(two)
    assert (await two.talk()).endswith("ho")
    await two.apply(workload("web", "one", {"uid": WEB}))
    await two.enrol("web")
    await back(two, "shop/web")
    assert await soon(lambda: _fails(two, "closed"))
    assert await two.talk() == CAPTURED
    await says(two, ("shop/web", 1))


async def test_stopped_in_good_order(two: Pair) -> None:
    """Passing begins when draining does: nobody falls between the two."""
    assert await two.talk() == CAPTURED
    process = two.one.process
    assert process is not None
    await process.end(grace=10)
    assert (await two.talk()).endswith("ho")
    assert await refused_at_once(two)


async def test_the_mode_can_change(two: Pair) -> None:
    await two.apply(workload("web", "one", {"uid": WEB}))
    await two.enrol("web")
    assert await two.talk() == CAPTURED
    process = two.one.process
    assert process is not None
    await process.kill()
    with not_even_once():
        assert await two.talk() == ""


async def killed(two: Pair) -> None:
    process = two.one.process
    assert process is not None
    await process.kill()


async def back(two: Pair, name: str) -> None:
    """The agent, with that workload captured."""
    await two.mesh.start_agent(two.one)

    async def captured() -> bool:
        return name in await two.captured(two.one)

    assert await soon(captured, 15)


async def told_of(two: Pair, line: str) -> None:
    status = await two.mesh.try_on(two.one, "capture", "status")
    assert line in status.errors.splitlines()


async def once_only(two: Pair, name: str) -> None:
    """What was told of is not told of again."""
    before = said(two)
    assert two.one.process is not None
    await two.one.process.end(grace=10)
    await back(two, name)
    assert said(two) == before


async def says(two: Pair, *whose: tuple[str, int]) -> None:
    """So much in all, in that order, as soon as the first view is acted on."""

    async def told() -> bool:
        return said(two) == list(whose)

    assert await soon(told), said(two)


def said(two: Pair) -> list[tuple[str, int]]:
    """Whose connections passed, and how many, as the log has it."""
    lines = (json.loads(x) for x in process_log(two).splitlines() if "passed-while-away" in x)
    return [(x.get("workload") or x["of"], x["connections"]) for x in lines]


async def metrics(two: Pair) -> str:
    ran = await programs.run(Place(two.one.machine.namespace), programs.get("http://127.0.0.1:15020/metrics"))
    assert ran.ok, ran.errors
    return ran.output.decode()


def process_log(two: Pair) -> str:
    assert two.one.process is not None
    return two.one.process.tail(200)


async def _is(two: Pair, count: int) -> bool:
    return await by_tunnel(two) == count


async def _fails(two: Pair, mode: str) -> bool:
    rows = {r["workload"]: r for r in (await two.ask(two.one, "capture"))["rows"]}
    return bool(rows["shop/web"].get("fail_mode", "closed") == mode)


async def _captured(two: Pair) -> bool:
    return "shop/web" in await two.captured(two.one)
