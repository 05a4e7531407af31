"""A container that restarts and dials at once: its namespace and its address are new, and nothing slips out."""

import json

import pytest
import trio

from agent.discovery.containers import LINGER
from tests.netns.box import GREETING, MARKER, STRICT, open_box, total
from tests.promises import not_even_once

pytestmark = pytest.mark.slow

ROUNDS = 12
RESTARTS = 4
KEPT = "10.77.2.9"
NO_HOLD = {"CULVERT_AGENT_DISCOVERY_HOLD": "false"}


@pytest.mark.parametrize("fail_mode", ["closed", "open"])
async def test_restarts_of_a_container_leave_no_gap(fail_mode: str) -> None:
    """Whatever becomes of it while the agent is away: here it is not."""
    async with open_box(fail_mode) as box:
        said = total([await box.restart() for _ in range(ROUNDS)])
        print(said)
        with not_even_once():
            assert box.seen() == (0, 0)
        assert said["attempted"] == ROUNDS * 60
        assert said["carried"] + said["refused"] == said["attempted"]
        assert said["carried"] >= 0.98 * said["attempted"], said
        closed = (await box.two.ask(box.two.one, "connections"))["closed"]
        assert {c["source"]["workload"] for c in closed[-100:]} == {"found/box-one"}
        held = (await box.two.ask(box.two.one, "capture"))["held"]
        assert held["waited"] > 0
        ran = await box.two.mesh.try_on(box.two.one, "capture", "status")
        assert f"held until known: {held['waited']} packets of new containers" in ran.errors


async def test_a_container_that_was_stopped_for_long_is_held_when_it_starts() -> None:
    async with open_box() as box:
        await trio.to_thread.run_sync(lambda: box.engine("stop", "--time", "0", "box"))
        await trio.sleep(LINGER + 3)  # after which it is no more taken to be restarting
        assert not (await box.two.ask(box.two.one, "status")).get("problems")
        assert await box.captured()
        said = await box.start()
        with not_even_once():
            assert box.seen() == (0, 0)
        assert said["carried"] + said["refused"] == 60
        assert said["carried"] >= 55, said


async def test_without_the_hold_the_same_restarts_are_there_for_all_to_read() -> None:
    """That there is a gap, and that the sniffer sees it."""
    async with open_box(**NO_HOLD) as box:
        said = total([await box.restart() for _ in range(5)])
        payload, connections = box.seen()
        print(said, payload, connections)
        assert said["carried"] == said["attempted"]
        assert connections > 5
        assert payload == 2 * connections * len(MARKER)


async def test_while_the_agent_is_away_it_is_refused_at_once() -> None:
    async with open_box() as box:
        process = box.two.one.process
        assert process
        await process.kill()
        for _ in range(3):
            assert await box.restart() == {"attempted": 60, "carried": 0, "refused": 60}
        with not_even_once():
            assert box.seen() == (0, 0)
        await box.two.mesh.start_agent(box.two.one)
        assert await box.captured()
        said = await box.restart()
        with not_even_once():
            assert box.seen() == (0, 0)
        assert said["carried"] >= 55, said


async def test_one_that_fails_open_passes_then_and_is_counted() -> None:
    async with open_box(fail_mode="open") as box:
        two, process = box.two, box.two.one.process
        assert process
        assert await box.run("neighbour", attempts=1) == {"attempted": 1, "carried": 1, "refused": 0}
        assert await box.known("neighbour")
        box.seen()
        await process.kill()
        # Its own namespace has a table that counts, and takes that count along; the neighbour is known to be nobody's.
        assert await box.again("box") == {"attempted": 10, "carried": 10, "refused": 0}
        assert await box.again("neighbour") == {"attempted": 10, "carried": 10, "refused": 0}
        for _ in range(2):
            assert await box.restart() == {"attempted": 60, "carried": 60, "refused": 0}
        assert box.seen()[1] == 10 + 10 + 120
        await two.mesh.start_agent(two.one)
        assert await box.captured()
        answer = await two.ask(two.one, "capture")
        assert answer["unnamed"]["containers"] == 120
        ran = await two.mesh.try_on(two.one, "capture", "status")
        assert "passed while the agent was away: 120 connections of new containers" in ran.errors
        said = [json.loads(line) for line in process.tail(400).splitlines() if "passed-while-away" in line]
        assert [(line["of"], line["connections"]) for line in said] == [("new containers", 120)]


async def test_neighbours_on_the_bridge_go_on_in_clear() -> None:
    """A new one waits for a moment with what it sends to the mesh, and one that is known never does."""
    async with open_box() as box:
        assert await box.run("neighbour") == {"attempted": 60, "carried": 60, "refused": 0}
        assert box.seen() == (2 * 60 * len(MARKER), 60)
        assert await box.again("neighbour") == {"attempted": 10, "carried": 10, "refused": 0}
        process = box.two.one.process
        assert process
        await process.kill()
        assert await box.again("neighbour") == {"attempted": 10, "carried": 10, "refused": 0}
        assert box.seen()[1] == 20
        # Whoever is new while nobody can say who it is may be a workload.
        assert await box.run("stranger", attempts=10) == {"attempted": 10, "carried": 0, "refused": 10}
        await box.two.mesh.start_agent(box.two.one)
        assert await box.captured()
        assert (await box.again("stranger"))["carried"] == 10


async def test_a_stranger_does_not_reach_one_that_restarted_while_the_agent_is_away() -> None:
    async with open_box(serves=True) as box:
        two, process = box.two, box.two.one.process
        assert await box.heard() == (GREETING, GREETING)
        assert process
        await process.kill()
        assert await box.heard() == ("", "")
        await box.restart()
        assert await box.served()
        with not_even_once():
            assert await box.heard() == ("", "")
        await two.mesh.start_agent(two.one)
        assert await box.captured()
        assert await box.heard() == (GREETING, GREETING)
        held = (await two.ask(two.one, "capture"))["held"]
        assert held["sheltered"] == 4
        ran = await two.mesh.try_on(two.one, "capture", "status")
        assert "refused while the agent was away: 4 packets for containers and other namespaces" in ran.errors


@pytest.mark.parametrize("address", [KEPT, ""])
async def test_a_stranger_does_not_reach_one_that_restarts(address: str) -> None:
    """Whether it keeps its address or gets another. STRICT: nothing in clear is for it."""
    async with open_box(serves=True, attempts=0, address=address) as box:
        assert await box.heard() == (GREETING, GREETING)
        said = await box.knocked_at_while_it_restarts(RESTARTS, address)
        print(said)
        with not_even_once():
            assert said["heard"] == 0
        assert said["attempts"] > 100 * RESTARTS
        assert await box.captured()
        assert await box.served()
        assert await box.heard() == ("", "")
        held = (await box.two.ask(box.two.one, "capture"))["held"]
        assert held["delayed"] > 0
        ran = await box.two.mesh.try_on(box.two.one, "capture", "status")
        assert f"delayed until it had rules: {held['delayed']} packets for new containers" in ran.errors


async def test_a_stranger_does_not_reach_one_that_was_stopped_for_long() -> None:
    """STRICT, and the centre, for which it served nothing when it was stopped, is away when it starts."""
    async with open_box(serves=True, attempts=0, address=KEPT) as box:
        await box.two.mesh.apply(STRICT)
        await trio.to_thread.run_sync(lambda: box.engine("stop", "--time", "0", "box"))
        await trio.sleep(LINGER + 3)
        assert box.two.mesh.process
        await box.two.mesh.process.end()
        async with box.knocking(KEPT) as found:
            await box.start()
            assert await box.served()
        assert found["attempts"] > 100
        with not_even_once():
            assert found["heard"] == 0
            assert await box.heard() == ("", "")


async def test_without_the_hold_strangers_reach_one_that_restarts() -> None:
    """That there is a gap, and that somebody who knocks finds it."""
    async with open_box(serves=True, attempts=0, **NO_HOLD) as box:
        said = await box.knocked_at_while_it_restarts(RESTARTS)
        print(said)
        assert said["heard"] > 0


async def test_a_stranger_reaches_one_that_fails_open() -> None:
    async with open_box("open", serves=True) as box:
        process = box.two.one.process
        assert await box.heard() == (GREETING, GREETING)
        assert process
        await process.kill()
        assert await box.heard() == (GREETING, GREETING)
        await box.restart()
        assert await box.served()
        assert await box.heard() == (GREETING, GREETING)


async def test_the_boot_guard_holds_containers_before_there_is_an_agent() -> None:
    async with open_box(serves=True) as box:
        process, machine = box.two.one.process, box.two.one.machine
        assert process
        await process.kill()
        await box.two.nft(machine, "flush", "ruleset")
        said = await box.two.mesh.on(box.two.one, "capture", "guard")
        print(said)
        assert await box.restart() == {"attempted": 60, "carried": 0, "refused": 60}
        assert await box.served()
        with not_even_once():
            assert box.seen() == (0, 0)
            assert await box.heard() == ("", "")
        await box.two.mesh.start_agent(box.two.one)
        assert await box.captured()
        said = await box.restart()
        with not_even_once():
            assert box.seen() == (0, 0)
        assert said["carried"] >= 55, said
