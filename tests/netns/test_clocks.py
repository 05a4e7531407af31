"""Machines whose clock is wrong, or is set while their agent runs. libfaketime sets it for one agent alone."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.netns.node import CAPTURED, Pair, pair, soon

LIBRARY = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
pytestmark = pytest.mark.skipif(LIBRARY is None, reason="libfaketime is not installed: apt-get install libfaketime")


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair() as made:
        await made.enrol()
        yield made


def _set(two: Pair, offset: str) -> None:
    """The clock of machine one is so far from ours, from the agent's next look on."""
    beside = two.one.directory / "faketime.new"
    beside.write_text(offset + "\n")
    beside.replace(two.one.directory / "faketime")


async def _restarted(two: Pair, offset: str) -> None:
    process = two.one.process
    assert process is not None
    await process.end()
    _set(two, offset)
    two.one.settings |= {
        "LD_PRELOAD": str(LIBRARY),
        "FAKETIME_TIMESTAMP_FILE": str(two.one.directory / "faketime"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    await two.mesh.start_agent(two.one)


async def _talks(two: Pair) -> bool:
    return await two.talk() == CAPTURED


async def test_a_small_skew_is_shown_and_tolerated(two: Pair) -> None:
    await _restarted(two, "-40s")
    assert await soon(lambda: _talks(two), 10)

    async def measured() -> bool:
        ahead = (await two.ask(two.one, "status"))["clock_ahead"]
        return ahead is not None and abs(ahead + 40) < 1

    assert await soon(measured, 10), await two.ask(two.one, "status")
    said = await two.mesh.on(two.one, "status")
    assert "clock      40.0 s behind the centre's, give or take" in said
    assert (await two.ask(two.one, "status"))["problems"] == []


@pytest.mark.parametrize("offset", ["-40d", "+3h"], ids=["behind", "ahead"])
async def test_a_clock_that_is_far_off_is_named_and_heals_by_being_set(two: Pair, offset: str) -> None:
    """40 days behind not even the centre's certificate is valid yet, and the skew is told all the same."""
    await _restarted(two, offset)
    way = {"-": "behind", "+": "ahead of"}[offset[0]]

    async def named() -> bool:
        problems = (await two.ask(two.one, "status"))["problems"]
        return any(f"{way} the centre's" in p and "max_skew" in p for p in problems)

    assert await soon(named, 20), (await two.ask(two.one, "status"), two.one.process and two.one.process.tail())
    assert two.one.process is not None
    if way == "ahead of":  # it has a session nevertheless, and the centre's operators can see it too

        async def told() -> bool:
            return "ahead of the centre's" in " ".join((await two.mesh.status()).nodes[0].problems)

        assert await soon(told, 20), await two.mesh.status()
    _set(two, "+0s")

    async def healed() -> bool:
        status = await two.ask(two.one, "status")
        return bool(status["connected"]) and status["problems"] == []

    assert await soon(healed, 15), (await two.ask(two.one, "status"))["problems"]
    process = two.one.process
    await process.until(lambda: "clock-jumped" in process.output(), "notice the jump", 5)
    assert await soon(lambda: _talks(two), 10)


async def test_a_clock_that_jumps_wakes_what_is_due(two: Pair) -> None:
    """A week forward: node and leaf certificates have ended, by this clock, and the message says whose is wrong. Back
    again, all goes on within seconds and nobody was asked."""
    await _restarted(two, "+0s")
    assert await soon(lambda: _talks(two), 10)
    _set(two, "+8d")

    async def noticed() -> bool:
        status = await two.ask(two.one, "status")
        return any("7 days 23 h ahead" in p or "8 days 0 h ahead" in p for p in status["problems"])

    assert await soon(noticed, 5), await two.ask(two.one, "status")
    rows = (await two.ask(two.one, "certificates"))["rows"]
    assert {row["status"] for row in rows} == {"expired"}
    _set(two, "+0s")

    async def fine() -> bool:
        rows = (await two.ask(two.one, "certificates"))["rows"]
        return {row["status"] for row in rows} == {"valid"}

    with trio.fail_after(5):
        assert await soon(fine)
    assert await soon(lambda: _talks(two), 10)
