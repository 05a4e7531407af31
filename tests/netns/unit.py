"""A workload in a cgroup of its own that dials without a pause, the server it calls, and an ear on the wire."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from agent.lab import programs
from agent.lab.leaks import Leaks
from agent.lab.place import Place
from agent.lab.process import Process
from agent.lab.sniffer import Sniffer, sniff
from redirect.cgroup import mount_point
from tests.netns.node import API, Pair, pair, workload
from tests.netns.traffic import echo, serving

PORT = 9191
MARKER = "restarted-units-say-this-in-confidence"
STORM = Path(__file__).with_name("storm.py")


class Unit:
    """The workload `shop/unit` of machine one, matched by a cgroup two levels deep; it calls shop/api at `address`."""

    def __init__(self, two: Pair, sniffer: Sniffer, parent: str, address: str) -> None:
        self.two, self.sniffer, self.address = two, sniffer, address
        root = mount_point()
        assert root is not None
        self.cgroup = f"{parent}/unit.service"
        self.directory = Path(root, self.cgroup)
        self.parking = Path(root)

    def _storm(self, rounds: int, attempts: int, restarts: int, floor: float = 0.0) -> list[str]:
        orders = {
            "unit": str(self.directory),
            "parking": str(self.parking),
            "address": self.address,
            "port": PORT,
            "marker": MARKER,
            "rounds": rounds,
            "attempts": attempts,
            "restarts": restarts,
            "pause": 0.001,  # a busy machine makes it longer
            "floor": floor,
        }
        return [programs.SYSTEM_PYTHON, str(STORM), json.dumps(orders)]

    async def storm(self, rounds: int, attempts: int = 40, floor: float = 0.0) -> dict[str, Any]:
        """What became of the attempts, with a restart before each round; rounds with less than `floor` attempts a
        second come on top."""
        place = Place(self.two.one.machine.namespace)
        ran = await programs.run(place, self._storm(rounds, attempts, 1, floor), 110)
        assert ran.ok, ran.errors
        return _last(ran.output.decode())

    @asynccontextmanager
    async def storming(self, name: str) -> AsyncIterator["Storm"]:
        """A storm for the time of the block; one round in three begins with a restart."""
        place = Place(self.two.one.machine.namespace)
        process = self.two.lab.start(name, place, self._storm(100_000, 20, 3))
        storm = Storm(process)
        try:
            yield storm
            await process.end(grace=20)
        finally:
            await process.end(grace=0)
            print(name, storm.said)

    def seen(self) -> tuple[int, int]:
        """What the link has shown since the last time: payload bytes in clear, and connections outside of tunnels."""
        self.sniffer.drain()
        assert self.sniffer.lost == 0
        leaks = self.sniffer.leaks
        self.sniffer.restart(MARKER.encode())
        return leaks.clear, _dials(leaks)

    async def resolved(self) -> int:
        """Connections that went to the resolver."""
        text = await self.two.nft(self.two.one.machine, "list", "chain", "inet", "culvert", "unknown")
        return sum(int(line.split("packets ")[1].split()[0]) for line in text.splitlines() if "packets" in line)


class Storm:
    """A storm that goes on."""

    def __init__(self, process: Process) -> None:
        self._process = process

    @property
    def said(self) -> dict[str, Any]:
        """What has become of the attempts so far."""
        return _last(self._process.output())

    async def until(self, more: int, what: str) -> None:
        """Wait until so many more were `carried` or `refused`."""
        start = self.said[what]
        await self._process.until(lambda: self.said[what] >= start + more, f"have {more} more {what}", 30)


def _last(output: str) -> dict[str, Any]:
    """The last whole line."""
    lines = [line for line in output.split("\n")[:-1] if line.startswith("{")]
    zero = {"attempted": 0, "carried": 0, "refused": 0, "strange": {}, "rate": 0.0}
    return dict(json.loads(lines[-1])) if lines else zero


def _dials(leaks: Leaks) -> int:
    """Connections to the server that were opened on the wire, outside of tunnels."""
    return sum(flow[3] == PORT for flow in leaks.opened)


@asynccontextmanager
async def open_unit(parent: str, ipv6: bool = False) -> AsyncIterator[Unit]:
    """The unit, enrolled, below `parent`; its server runs, and has an address of that family."""
    async with pair() as two, sniff(two.lab.topology, two.one.machine.port) as sniffer:
        there = two.two.machine
        made = Unit(two, sniffer, parent, there.address6 if ipv6 else there.address)
        await two.apply(
            workload("unit", "one", {"cgroup": made.cgroup}),
            workload("api", "two", {"uid": API}, PORT, address=made.address),
        )
        await two.enrol("unit", "api")
        async with serving(Place(there.namespace, API), made.address, PORT, echo):
            sniffer.restart(MARKER.encode())
            yield made
