"""Says now and then in the log what the mesh does not carry: who sends UDP and the like in clear, and how much."""

from collections.abc import Awaitable, Callable, Iterator, Mapping

import structlog
import trio

from redirect.counts import Counters, Counts

log: structlog.stdlib.BoundLogger = structlog.get_logger()

EVERY = 300.0
"""Seconds between two summaries: a line for each workload that had something to say of, and none otherwise."""


def news(before: Mapping[str, Counts], now: Mapping[str, Counts]) -> Iterator[tuple[str, dict[str, int]]]:
    """What was counted in between, by workload, where packets other than questions for names left or were dropped.
    Counts that fell were begun anew, and say nothing this once."""
    for workload, counts in sorted(now.items()):
        old = before.get(workload, Counts())
        grown = {name: max(getattr(counts, name) - getattr(old, name), 0) for name in ("unmeshed", "dns", "blocked")}
        if grown["unmeshed"] or grown["blocked"]:
            yield workload, grown


async def summarise(counters: Callable[[], Awaitable[Counters]], every: float = EVERY) -> None:
    """Log `news` until cancelled."""
    before = (await counters()).workloads
    while True:
        await trio.sleep(every)
        now = (await counters()).workloads
        for workload, grown in news(before, now):
            log.warning("unmeshed-traffic", workload=workload, seconds=round(every), **grown)
        before = {**before, **now}
