"""The task that keeps an eye on the clocks: it measures the skew while there is no session to measure it, and wakes
whoever follows the wall clock when that jumped.

Timers sleep by the monotonic clock, which neither a suspend nor a set clock moves; so this looks every second instead.
"""

import time
from collections.abc import Awaitable, Callable

import structlog
import trio

from agent.clock import CentreClock, Jumps
from ca.client import ClientError, boot_time

log: structlog.stdlib.BoundLogger = structlog.get_logger()

LOOK = 1.0
"""Seconds between looks: the longest that a timer can be late after a jump."""
MEASURE = 10.0
"""Seconds between questions for the centre's time while there is no session."""


def three_clocks() -> tuple[float, float, float]:
    """The wall clock, the monotonic one and the one since boot."""
    return time.time(), time.monotonic(), boot_time()


async def keep_time(
    clock: CentreClock,
    *,
    connected: Callable[[], bool],
    measure: Callable[[], Awaitable[None]],
    woke: Callable[[float], None],
    certified: Callable[[], object],
    changed: Callable[[], None],
    bound: float,
    clocks: Callable[[], tuple[float, float, float]] = three_clocks,
) -> None:
    """Until cancelled. `measure` asks the centre for its time; `woke` is called after a jump, with the seconds slept,
    and `changed` when `certified()` (who has a certificate that is valid now) is another than a second before."""
    jumps = Jumps(*clocks())
    valid, measured, told = certified(), -MEASURE, False
    while True:
        await trio.sleep(LOOK)
        now = clocks()
        step, slept = jumps.look(*now)
        if step or slept:
            log.warning("clock-jumped", set_forward=round(step, 1), slept=round(slept, 1))
            measured = -MEASURE
            woke(slept)
        if not connected() and now[2] - measured >= MEASURE:
            measured = now[2]
            try:
                await measure()
            except ClientError as error:
                log.debug("centre-time-unknown", why=str(error))
        if (objection := clock.objection(bound)) and not told:
            log.error("clock-skew", problem=objection)
        if told and not objection:
            log.info("clock-agrees", skew=str(clock.skew()))
            woke(0.0)
        told = bool(objection)
        if (holders := certified()) != valid:
            valid = holders
            changed()
