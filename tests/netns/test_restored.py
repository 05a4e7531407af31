"""What others take from the kernel of ours comes back: tables and routing."""

import json
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing

import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place
from agent.lab.process import eventually
from agent.lab.topology import Host
from redirect.netlink import NETFILTER, Netlink
from redirect.watch import GROUP, SUBSYSTEM
from tests.netns.node import CAPTURED, Pair, pair, soon

NEWTABLE, DELTABLE = 0, 2


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


async def test_what_others_flush_is_restored(two: Pair) -> None:
    await two.enrol("web", "api", "pod")
    for where in (two.one.machine, two.pod):
        before = await two.rules(where)
        await two.nft(where, "flush", "ruleset")
        assert await soon(lambda before=before, where=where: _as_before(two, where, before))
        if "flags owner" in before:
            for change in ("delete table inet culvert", "flush chain inet culvert out"):
                ran = await programs.run(Place(where.namespace), ["nft", *change.split()])
                assert "not permitted" in ran.errors
    assert await two.talk() == CAPTURED


async def test_a_table_that_has_no_owner_is_restored(two: Pair) -> None:
    """As on older kernels, or when a version before this one has made it."""
    await two.enrol("web", "api")
    assert two.one.process
    await two.one.process.end(grace=10)
    await two.nft(two.one.machine, "flush", "ruleset")
    await two.nft(two.one.machine, "add", "table", "inet", "culvert")
    await two.mesh.start_agent(two.one)
    whole = ("chain out {", "chain from/shop/web", "redirect to :15006")
    assert await soon(lambda: _contains(two.rules(two.one.machine), whole), 10)
    assert "owner" not in await two.rules(two.one.machine)
    with closing(two.one.machine.namespace.run(_news)) as news:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two.nft, two.one.machine, "flush", "ruleset")
            without = await _without_table(news)
    assert without < 1
    assert await soon(lambda: _contains(two.rules(two.one.machine), whole))
    said = two.one.process.output
    assert await eventually(lambda: "not_captured_for_seconds" in said()), said()  # told when it is done
    assert "capture-changed-by-others" in said()
    (told,) = [json.loads(line) for line in said().splitlines() if '"capture-restored"' in line]
    print("the kernel was without for", without, "and the agent says", told["not_captured_for_seconds"])
    assert 0 < told["not_captured_for_seconds"] < 1
    ran = await programs.run(Place(two.one.machine.namespace), programs.get("http://127.0.0.1:15020/metrics"))
    assert "\nculvert_tables_restored_total 1.0\n" in ran.output.decode()
    assert await two.talk() == CAPTURED


def _news() -> Netlink:
    """What the kernel tells of the tables of this namespace."""
    return Netlink(NETFILTER, groups=1 << (GROUP - 1))


async def _without_table(news: Netlink) -> float:
    """The seconds between the end of a table and the next one's beginning, by the kernel's own word."""
    ended = None
    with trio.fail_after(10):
        while True:
            await trio.lowlevel.wait_readable(news.fileno())
            for frame in news.drain():
                if frame.kind == SUBSYSTEM << 8 | DELTABLE:
                    ended = trio.current_time()
                elif frame.kind == SUBSYSTEM << 8 | NEWTABLE and ended is not None:
                    return trio.current_time() - ended


async def _contains(text: Awaitable[str], parts: tuple[str, ...]) -> bool:
    found = await text
    return all(part in found for part in parts)


async def test_routing_that_others_take_is_put_back(two: Pair) -> None:
    await two.enrol("web", "api", "pod")

    async def ip(where: Host, *words: str) -> str:
        ran = await programs.run(Place(where.namespace), ["ip", *words])
        assert ran.ok, ran.errors
        return ran.output.decode()

    async def whole(where: Host) -> bool:
        return "49175" in await ip(where, "rule") and "local" in await ip(where, "route", "show", "table", "49175")

    for where in (two.one.machine, two.pod):
        assert await whole(where)
        for command in (("rule", "del", "priority", "49"), ("route", "flush", "table", "49175")):
            started = trio.current_time()
            await ip(where, *command)
            assert await soon(lambda where=where: whole(where))
            print("restored within", trio.current_time() - started)
    assert await two.talk() == CAPTURED


async def _as_before(two: Pair, where: Host, before: str) -> bool:
    return _stripped(await two.rules(where)) == _stripped(before)


def _stripped(rules: str) -> str:
    return re.sub(r"counter packets \d+ bytes \d+", "counter", rules)
