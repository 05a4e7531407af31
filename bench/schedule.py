"""Rounds: which peer is measured with what, when, and how often again.

A start brings every peer up afresh. Memory comes first, one peer alone at a time. Then all stay up side by side, and
each turn measures every peer with one thing before the next thing, so that what is compared lies seconds apart; the
order is turned round every other turn. A disturbed measurement is repeated, a few times at most, and the calmest kept:
the choice looks at noise, never at the result.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import trio

from agent.lab.lab import Lab
from agent.lab.mesh import CulvertError
from agent.lab.process import ProcessError
from bench.measures import Measure, Site, wrk
from bench.meter import quiet
from bench.output import OutputError
from bench.peers import Peer
from bench.rig import BULK, HTTP, Rig, build
from bench.samples import Record, Sample
from bench.servers import start_servers
from bench.verify import WrongBytes, verify

Say = Callable[[str], None]

_FAILURES = (OutputError, WrongBytes, ProcessError, CulvertError, OSError, trio.TooSlowError)
"""What ends one peer's part and leaves the others' standing. Anything else is a fault of ours, and loud."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does. With `seconds` it stops in time: it drops repeats first, and turns after the second."""

    workers: tuple[int, ...]
    starts: int
    turns: int
    memory: tuple[Measure, ...]
    load: tuple[Measure, ...]
    seconds: float = float("inf")
    tries: int = 3
    """How often one thing is measured at most, while it is disturbed."""

    def of(self, port: int) -> list[Measure]:
        """The load that needs this server."""
        return [measure for measure in self.load if measure.port == port]


@dataclass(slots=True)
class Schedule:
    """Carries a plan out. `done` is called after each turn, to keep what there is."""

    plan: Plan
    peers: Sequence[Peer]
    lab: Lab
    record: Record
    say: Say
    done: Callable[[], None] = lambda: None
    _count: int = 0
    _began: float = 0.0

    async def run(self) -> None:
        """Everything, in order."""
        self._began = trio.current_time()
        for workers in self.plan.workers:
            for start in range(self.plan.starts):
                await self._memory(workers, start)
                await self._load(workers, start)

    async def _memory(self, workers: int, start: int) -> None:
        for peer in self.peers if self.plan.memory else ():
            if peer.name == "direct":
                continue
            with self._guard(peer, f"memory, start {start}"):
                for measure in self.plan.memory:
                    async with self._up(peer, workers) as rig:
                        site = await peer.aim(HTTP)
                        await verify(site, rig.blob)
                        await self._take(peer, workers, measure, site, start, patient=False)
        self.done()

    async def _load(self, workers: int, start: int) -> None:
        async with contextlib.AsyncExitStack() as stack:
            rigs: list[tuple[Peer, Rig]] = []
            for peer in self.peers:
                with self._guard(peer, f"start {start}"):
                    rigs.append((peer, await stack.enter_async_context(self._up(peer, workers))))
            for port, share in ((HTTP, 0.65), (BULK, 0.95)):
                if self.plan.of(port):
                    until = self._began + self.plan.seconds * share
                    await self._turns(rigs, workers, start, port, until)

    async def _turns(self, rigs: list[tuple[Peer, Rig]], workers: int, start: int, port: int, until: float) -> None:
        sites: list[tuple[Peer, Site]] = []
        for peer, rig in rigs:
            with self._guard(peer, f"port {port}"):
                site = await peer.aim(port)
                if port == HTTP:
                    await verify(site, rig.blob)
                    await wrk(16, 1).load(site)  # connections, caches and tunnels are warm from here on
                sites.append((peer, site))
        await quiet(patience=5.0)
        longest = 0.0
        for turn in range(self.plan.turns):
            began = trio.current_time()
            if turn >= 2 and began + longest > until:
                break
            for measure in self.plan.of(port):
                for peer, site in sites if turn % 2 == 0 else reversed(sites):
                    number = start * self.plan.turns + turn
                    await self._take(peer, workers, measure, site, number, patient=trio.current_time() < until)
            longest = max(longest, trio.current_time() - began)
            self.done()

    async def _take(self, peer: Peer, workers: int, measure: Measure, site: Site, turn: int, *, patient: bool) -> None:
        best: Sample | None = None
        for tries in range(1, (self.plan.tries if patient else 1) + 1):
            try:
                values, noise = await measure.take(site)
                sample = Sample(peer.name, workers, measure.name, turn, values, noise, tries)
            except (OutputError, OSError) as error:
                sample = Sample(peer.name, workers, measure.name, turn, tries=tries, fault=str(error))
            if best is None or not best.sound or (sample.sound and sample.noise.level < best.noise.level):
                best = sample
            if best.sound and best.noise.level <= 1.0:
                break
            await quiet(patience=3.0)
        assert best
        self.record.samples.append(best)
        self.say(line(best))

    @contextlib.asynccontextmanager
    async def _up(self, peer: Peer, workers: int) -> AsyncIterator[Rig]:
        """The peer on a fresh rig with its servers; both gone afterwards."""
        self._count += 1
        rig = build(self.lab, f"r{self._count}-{peer.name}")
        try:
            await start_servers(rig)
            await peer.start(rig, workers)
            self._remember(peer)
            yield rig
        finally:
            with trio.CancelScope(shield=True):
                await peer.stop()
                self._remember(peer)
                await rig.close()

    def _remember(self, peer: Peer) -> None:
        for note in peer.notes:
            if (full := f"{peer.name}: {note}") not in self.record.notes:
                self.record.notes.append(full)
                self.say(full)

    @contextlib.contextmanager
    def _guard(self, peer: Peer, where: str) -> Iterator[None]:
        try:
            yield
        except _FAILURES as error:
            fault = f"{peer.name}, {where}: {error}"
            self.record.faults.append(fault)
            self.say(f"FAILED {fault}")


def line(sample: Sample) -> str:
    """One sample for who looks on."""
    shown = " ".join(f"{name}={value:.4g}" for name, value in sample.values.items())
    noise = f"other={sample.noise.other:.2f} steal={sample.noise.steal:.3f} tries={sample.tries}"
    return f"{sample.turn:2} {sample.peer:14} w{sample.workers} {sample.measure:10} {sample.fault or shown} | {noise}"
