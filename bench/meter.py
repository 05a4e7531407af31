"""What a measurement cost, and how disturbed the machine was meanwhile."""

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import trio

from bench.account import Account
from bench.samples import Noise

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class _Reading:
    at: float
    sides: tuple[float, ...]
    ours: float
    busy: int
    stolen: int
    total: int


@dataclass(slots=True)
class Meter:
    """Measures over a with-block. `sides` are what is judged; `all_of_us` holds everything the benchmark runs, sides
    included: what the machine did beyond that (and beyond this very process) was somebody else's."""

    sides: tuple[Account, ...]
    all_of_us: Account
    cpu: float = field(init=False, default=0.0)
    """CPU seconds of the sides together."""
    wall: float = field(init=False, default=0.0)
    noise: Noise = field(init=False, default=Noise())
    _start: _Reading = field(init=False)

    def __enter__(self) -> "Meter":
        self._start = self._read()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        before, after = self._start, self._read()
        self.wall = after.at - before.at
        self.cpu = sum(after.sides) - sum(before.sides)
        ticks = max(after.total - before.total, 1)
        others = (after.busy - before.busy) / _TICK - (after.ours - before.ours)
        self.noise = Noise((after.stolen - before.stolen) / ticks, max(0.0, others) / self.wall)

    def _read(self) -> _Reading:
        own = os.times()
        busy, stolen, total = _machine()
        return _Reading(
            time.monotonic(),
            tuple(side.cpu() for side in self.sides),
            self.all_of_us.cpu() + own.user + own.system + own.children_user + own.children_system,
            busy,
            stolen,
            total,
        )


def _machine() -> tuple[int, int, int]:
    """(busy, stolen, all) ticks of the whole machine since it started."""
    with Path("/proc/stat").open() as lines:
        ticks = [int(word) for word in lines.readline().split()[1:9]]
    idle, waiting, stolen = ticks[3], ticks[4], ticks[7]
    return sum(ticks) - idle - waiting - stolen, stolen, sum(ticks)


async def quiet(limit: float = 0.1, patience: float = 20.0) -> None:
    """Wait until the machine is mostly idle, at most `patience` seconds."""
    deadline = trio.current_time() + patience
    while trio.current_time() < deadline:
        busy, _, total = _machine()
        await trio.sleep(0.5)
        later, _, all_later = _machine()
        if (later - busy) / max(all_later - total, 1) < limit:
            return
