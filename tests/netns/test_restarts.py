"""A unit that restarts a hundred times under traffic: its cgroup is a new one each time, and nothing slips out."""

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.lab import programs
from agent.lab.leaks import Leaks
from agent.lab.place import Place
from agent.lab.sniffer import Sniffer, sniff
from redirect.cgroup import mount_point
from tests.netns.node import API, Pair, pair, workload
from tests.netns.traffic import echo, serving

PORT = 9191
MARKER = "restarted-units-say-this-in-confidence"
STORM = Path(__file__).with_name("storm.py")


class Unit:
    """A workload `shop/unit` of machine one, matched by a cgroup two levels deep, and the server that it calls."""

    def __init__(self, two: Pair, sniffer: Sniffer, parent: str) -> None:
        self.two, self.sniffer = two, sniffer
        root = mount_point()
        assert root is not None
        self.cgroup = f"{parent}/unit.service"
        self.directory = Path(root, self.cgroup)
        self.parking = Path(root)

    async def storm(self, rounds: int, attempts: int = 40, restarted: bool = True) -> dict[str, Any]:
        """What became of the attempts."""
        orders = {
            "unit": str(self.directory) if restarted else "",
            "parking": str(self.parking),
            "address": self.two.two.machine.address,
            "port": PORT,
            "marker": MARKER,
            "rounds": rounds,
            "attempts": attempts,
            "pause": 0.0025,
        }
        place = Place(self.two.one.machine.namespace)
        ran = await programs.run(place, [programs.SYSTEM_PYTHON, str(STORM), json.dumps(orders)], 110)
        assert ran.ok, ran.errors
        said: dict[str, Any] = json.loads(ran.output)
        print(said)
        return said

    def seen(self) -> tuple[int, int]:
        """What the link has shown since the last time: payload bytes in clear, and connections outside of tunnels."""
        self.sniffer.drain()
        assert self.sniffer.lost == 0
        leaks = self.sniffer.leaks
        self.sniffer.restart(MARKER.encode())
        return leaks.clear, dials(leaks)

    async def resolved(self) -> int:
        """Connections that went to the resolver."""
        text = await self.two.nft(self.two.one.machine, "list", "chain", "inet", "culvert", "unknown")
        return sum(int(line.split("packets ")[1].split()[0]) for line in text.splitlines() if "packets" in line)


def dials(leaks: Leaks) -> int:
    """Connections to the server that were opened on the wire, outside of tunnels."""
    return sum(flow[3] == PORT for flow in leaks.opened)


@pytest.fixture
def parent() -> Iterator[str]:
    """The name of a cgroup for units to come and go in."""
    root = mount_point()
    name = f"culvert-restarts-{os.getpid()}.slice"
    if root is None or not os.access(root, os.W_OK):
        pytest.skip(f"mkdir {root}/{name}: no cgroup v2 that is ours to write")
    directory = Path(root, name)
    directory.mkdir()
    try:
        yield name
    finally:
        for inner in (*directory.iterdir(), directory):
            if inner.is_dir():
                inner.rmdir()


@pytest.fixture
async def unit(parent: str) -> AsyncIterator[Unit]:
    async with pair() as two, sniff(two.lab.topology, two.one.machine.port) as sniffer:
        made = Unit(two, sniffer, parent)
        await two.apply(workload("unit", "one", {"cgroup": made.cgroup}), workload("api", "two", {"uid": API}, PORT))
        await two.enrol("unit", "api")
        address = two.two.machine.address
        async with serving(Place(two.two.machine.namespace, API), address, PORT, echo):
            sniffer.restart(MARKER.encode())
            yield made


async def test_a_hundred_restarts_leave_no_gap(unit: Unit) -> None:
    said = await unit.storm(rounds=100)
    assert said["attempted"] == 4000
    assert said["rate"] >= 200
    assert said["carried"] + said["refused"] == 4000, said
    assert said["carried"] >= 3900, said
    assert unit.seen() == (0, 0)
    assert await unit.resolved() > 100  # the first attempts of each round
    connections = (await unit.two.ask(unit.two.one, "connections"))["closed"]
    assert {c["source"]["workload"] for c in connections[-1000:]} == {"shop/unit"}


async def test_without_capture_the_same_storm_is_there_for_all_to_read(unit: Unit) -> None:
    """That the sniffer would have seen it."""
    await unit.two.mesh.on(unit.two.one, "capture", "off")
    said = await unit.storm(rounds=5)
    assert said["carried"] == said["attempted"] == 200
    assert unit.seen() == (2 * 200 * len(MARKER), 200)


async def test_neighbours_of_a_unit_are_left_alone(unit: Unit, parent: str) -> None:
    """A new cgroup beside the unit's is nobody's: what it sends arrives as it was, and soon goes past us."""
    unit.directory = unit.directory.with_name("stranger.service")
    said = await unit.storm(rounds=1)
    assert said["carried"] == said["attempted"] == 40
    assert unit.seen() == (2 * 40 * len(MARKER), 40)
    resolved = await unit.resolved()
    assert 0 < resolved < 40
    closed = (await unit.two.ask(unit.two.one, "connections"))["closed"]
    passed = [c for c in closed if "no workload's" in c.get("reason", "")]
    assert len(passed) == resolved
    assert {c["verdict"] for c in passed} == {"allowed"}
    assert (await unit.two.captured(unit.two.one))["shop/unit"] == 0
    # Known by now, it is left alone; nft shows cgroups by their paths.
    known = await unit.two.nft(unit.two.one.machine, "list", "set", "inet", "culvert", "known-2")
    assert f"{parent}/stranger.service" in known
