"""Mixed load for long, and what must not grow: `make soak`.

Kept and new connections, bulk, a fixed rate, idle ones that come and go, and clients that end in the middle, all at
once through Culvert. Both agents are looked at all the while, and once more when everything has closed.
"""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from agent.answers import ConnectionsAnswer, TunnelsAnswer
from agent.lab.lab import Lab
from agent.lab.programs import run
from bench import measures
from bench.growth import Reading, grown, left_over
from bench.measures import Site
from bench.output import OutputError, Values, read_numbers
from bench.peers.culvert import Culvert
from bench.programs import churn, command
from bench.rig import BULK, HTTP, Node, Rig, build
from bench.servers import start_servers
from bench.verify import verify

PIECE = 10.0
"""Seconds of each piece of load; the whole run is made of such."""
LEAST = 180.0
"""Seconds below which the thirds of a run are shorter than the coming and going of its own load."""
READINGS = 120
"""How many a run takes, of each node, if that is not more than one a second."""
CHURN = 100
"""Short connections a second. With ab's they stay below what TIME_WAIT lets one client open to one server."""
RATE = 100
"""Requests a second that must all be answered, however the other loads fill the machine."""

Say = Callable[[str], None]


async def soak(lab: Lab, seconds: float, say: Say) -> list[str]:
    """What went wrong, in words; nothing means that nothing did."""
    rig, culvert, faults = build(lab, "soak"), Culvert(), []
    await start_servers(rig)
    await culvert.start(rig, 1)
    http, bulk = await culvert.aim(HTTP), await culvert.aim(BULK)
    await verify(http, rig.blob)
    watch = Watch(culvert, rig)
    before = await watch.at_rest()
    readings = list(before)
    for reading in before:
        say(_shown(reading))

    async def keep_on(name: str, piece: Callable[[], Awaitable[Values]], pause: float) -> None:
        while True:
            try:
                values = await piece()
                if values.get("bad"):
                    faults.append(f"{name}: {values['bad']:g} wrong or lost")
                    say(faults[-1])
            except OutputError as error:
                faults.append(f"{name}: {error}")
                say(faults[-1])
            await trio.sleep(pause)

    async with trio.open_nursery() as nursery:
        for name, piece, pause in _loads(http, bulk):
            nursery.start_soon(keep_on, name, piece, pause)
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            await trio.sleep(max(1.0, seconds / READINGS))
            for reading in await watch.look():
                readings.append(reading)
                say(_shown(reading))
        nursery.cancel_scope.cancel()
    after = await watch.at_rest()
    for reading in after:
        say(f"{_shown(reading)}, at rest")
    for reason, count in watch.reasons.most_common(12):
        say(f"{count:6} x {reason}")
    faults += left_over(before, after)
    if seconds < LEAST:
        say(f"shorter than {LEAST:g} s: what is left at rest was judged, growth in the run was not")
        return faults
    return faults + grown(readings[len(before) :])


def _loads(http: Site, bulk: Site) -> list[tuple[str, Callable[[], Awaitable[Values]], float]]:
    """(name, one piece of it, pause after it in seconds)."""

    async def short() -> Values:
        done = await run(http.place, command(churn, http.host, http.port, PIECE, CHURN), PIECE + 30)
        return read_numbers(done.output.decode() or done.errors)

    return [
        ("kept connections", lambda: measures.wrk(16, PIECE).load(http), 0.0),
        ("new connections", lambda: measures.ab(500, 8).load(http), 0.5),
        ("short connections", short, 0.0),
        ("fixed rate", lambda: measures.steady(8, PIECE, RATE).load(http), 0.0),
        ("bulk", lambda: measures.iperf(2, PIECE / 2).load(bulk), PIECE),
        ("idle connections", lambda: measures.idle(300).load(http), PIECE / 2),
    ]


@dataclass(slots=True)
class Watch:
    """Looks at both agents, and remembers why connections ended otherwise than by their two ends."""

    culvert: Culvert
    rig: Rig
    seen: set[str] = field(default_factory=set)
    reasons: Counter[str] = field(default_factory=Counter)

    async def at_rest(self, patience: float = 15.0) -> list[Reading]:
        """What both agents hold once no connection is open, or after `patience` seconds."""
        deadline = trio.current_time() + patience
        while True:
            readings = await self.look()
            if trio.current_time() > deadline or not any(r.connections or r.streams for r in readings):
                return readings
            await trio.sleep(0.5)

    async def look(self) -> list[Reading]:
        """What both agents hold now."""
        return [await self._read(side) for side in (self.rig.a, self.rig.b)]

    async def _read(self, side: Node) -> Reading:
        connections = await self.culvert.ask(side, "connections", ConnectionsAnswer)
        tunnels = await self.culvert.ask(side, "tunnels", TunnelsAnswer)
        for connection in connections.closed:
            if (key := f"{side.name} {connection.id}") not in self.seen:
                self.seen.add(key)
                if connection.reason:
                    self.reasons[f"{side.name}: {connection.verdict.value}: {connection.reason}"] += 1
        return Reading(
            side.name,
            trio.current_time(),
            side.account.memory().pss,
            side.account.descriptors(),
            len(connections.live),
            len(tunnels.rows),
            sum(tunnel.streams for tunnel in tunnels.rows),
        )


def _shown(reading: Reading) -> str:
    r = reading
    return (
        f"{r.node}: {r.memory:.1f} MiB, {r.descriptors} descriptors, {r.connections} connections, "
        f"{r.tunnels} tunnels with {r.streams} streams"
    )
