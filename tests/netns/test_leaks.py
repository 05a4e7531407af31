"""The leak test: a captured unit dials and restarts without a pause while everything happens to its agent that can
happen, and the link is read. What it says is seen by nobody; with capture off the same ear hears all of it."""

import json
import os
import signal

import msgspec
import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place
from tests.netns.node import WEB, workload
from tests.netns.unit import MARKER, Storm, Unit
from tests.promises import not_even_once


async def worker(unit: Unit) -> int:
    process = unit.two.one.process
    assert process
    argv = ["pgrep", "-P", str(process.pid), "culvert-worker"]
    return int((await programs.run(Place(unit.two.one.machine.namespace), argv)).output)


async def killed_worker(unit: Unit, storm: Storm) -> None:
    os.kill(await worker(unit), signal.SIGKILL)
    await storm.until(40, "carried")


async def killed_agent(unit: Unit, storm: Storm) -> None:
    process = unit.two.one.process
    assert process
    await process.kill()
    await storm.until(40, "refused")
    await unit.two.mesh.start_agent(unit.two.one)
    await storm.until(40, "carried")


async def stopped_agent(unit: Unit, storm: Storm) -> None:
    process = unit.two.one.process
    assert process
    await process.end(grace=10)
    await storm.until(40, "refused")
    await unit.two.mesh.start_agent(unit.two.one)
    await storm.until(40, "carried")


async def frozen_agent(unit: Unit, storm: Storm) -> None:
    """Restarts meanwhile are nobody's news."""
    process = unit.two.one.process
    assert process
    process.signal(signal.SIGSTOP)
    await storm.until(40, "carried")
    process.signal(signal.SIGCONT)
    await storm.until(40, "carried")


async def reloaded(unit: Unit, storm: Storm) -> None:
    """Every kind of change that reaches the table: neighbours come and go, ports do, the mode changes, capture is said
    to be on once more."""
    two = unit.two
    await two.apply(workload("more", "one", {"uid": WEB + 100}, 7001), workload("unit2", "one", {"cgroup": "a/b/c"}))
    await two.enrol("web", "more", "unit2")
    plain = json.loads(bytes(workload("unit", "one", {"cgroup": unit.cgroup}, 7777)))
    plain["metadata"]["labels"] = {"mesh": "on"}  # without it this would end capture
    await two.apply(msgspec.Raw(json.dumps(plain).encode()))
    await two.enrol("web", "more", "unit2", value=None)
    await two.mesh.on(two.one, "capture", "on")
    process = two.one.process
    assert process
    process.signal(signal.SIGHUP)
    await storm.until(40, "carried")


@pytest.mark.slow
@pytest.mark.parametrize("happens", [killed_worker, killed_agent, stopped_agent, frozen_agent, reloaded])
async def test_nothing_is_seen_whatever_happens(unit: Unit, happens) -> None:
    async with unit.storming("storm") as storm:
        await storm.until(40, "carried")
        for _ in range(2):
            await happens(unit, storm)
    with not_even_once():
        assert unit.seen() == (0, 0)
    said = storm.said
    print(happens.__name__, said)
    # Nothing hangs; what a killed process carried is cut short.
    assert said["strange"].keys() <= {"cut short"}, said
    assert said["carried"] + said["refused"] >= said["attempted"] * 0.9, said
    assert said["rate"] > 100


async def test_nothing_is_seen_while_a_machine_boots(unit: Unit) -> None:
    """No table stands, then the guard, then the unit, then the agent, which finds the centre away."""
    two = unit.two
    assert two.one.process
    assert two.mesh.process
    await two.one.process.end(grace=10)
    await two.mesh.process.end()
    await two.nft(two.one.machine, "flush", "ruleset")
    said = await two.mesh.on(two.one, "capture", "guard")
    assert "shop/unit" in said
    async with unit.storming("boot") as storm:
        await storm.until(40, "refused")
        assert storm.said["carried"] == 0
        await two.mesh.start_agent(two.one)
        await storm.until(40, "carried")
    with not_even_once():
        assert unit.seen() == (0, 0)
    assert storm.said["strange"] == {}


async def test_its_twin_without_capture_is_heard(unit: Unit) -> None:
    await unit.two.mesh.on(unit.two.one, "capture", "off")
    async with unit.storming("twin") as storm:
        await storm.until(40, "carried")
        await killed_worker(unit, storm)
        process = unit.two.one.process
        assert process
        await process.kill()
        await storm.until(40, "carried")
    said = storm.said
    clear, opened = unit.seen()
    assert said["carried"] == said["attempted"] > 100
    assert (clear, opened) == (2 * len(MARKER) * said["carried"], said["attempted"])


async def test_its_twin_without_a_guard_is_heard(unit: Unit) -> None:
    """A machine that boots as above, but nobody lays the table before the unit starts."""
    two = unit.two
    assert two.one.process
    await two.one.process.end(grace=10)
    await two.nft(two.one.machine, "flush", "ruleset")
    async with unit.storming("unguarded") as storm:
        await storm.until(40, "carried")
        await two.mesh.start_agent(two.one)
        with trio.fail_after(20):
            await two.mesh.settled()
        await storm.until(40, "carried")  # and what was opened before the table stood has ended
        clear, opened = unit.seen()
        assert opened >= 40
        assert clear >= 40 * len(MARKER)
        await storm.until(40, "carried")
    with not_even_once():
        assert unit.seen()[0] == 0
