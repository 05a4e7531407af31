"""What the agent says in its log of its own accord about itself: what does not hold at its start, what went by while it
was away, and which certificates end."""

import time
from collections.abc import Awaitable, Callable
from functools import reduce

import structlog
import trio

from agent.checks import CheckAnswer
from agent.node.capture import Capture
from agent.node.expiry import Told
from agent.node.issuance import kept
from agent.node.state import State
from agent.node.switch import boot_id
from agent.node.topics import Topics
from agent.node.unattended import untold
from ca.lifetimes import Standing
from redirect.counts import Counters

log: structlog.stdlib.BoundLogger = structlog.get_logger()

EXPIRY_LOOK = 15.0
"""Seconds between looks for certificates that are late, and at what else is told of the node itself."""


async def preconditions(check: Callable[[], Awaitable[CheckAnswer]]) -> None:
    """What does not hold, once: the rest of the agent works where it can."""
    for finding in (await check()).findings:
        if finding.state == "fail":
            log.error("precondition-failed", check=finding.name, cause=finding.text, remedy=finding.remedy)
        elif finding.state == "warn":
            log.warning("precondition-doubtful", check=finding.name, cause=finding.text, remedy=finding.remedy)


async def passed(first: trio.Event, state: State, capture: Capture) -> None:
    """Until cancelled: what went by in clear while we were away, where that is allowed. Told of once: after the `first`
    view is active, and of a namespace that is entered later, such as a container's whose engine answers late, then."""
    await first.wait()
    while True:
        if past := capture.past():
            before = state.told()
            fresh, told = untold(before, boot_id(), reduce(Counters.plus, past), await capture.counters())
            for whose, connections in fresh.items():
                who = {"workload" if "/" in whose else "of": whose}
                log.warning("passed-while-away", **who, connections=connections)
            if fresh or told.passed != before.passed:
                await kept(state.save_told, told)
        await trio.sleep(EXPIRY_LOOK)


async def endings(topics: Topics, changed: Callable[[tuple[str, ...]], None]) -> None:
    """Until cancelled: certificates near their end, each once a day. `changed` hears whenever the node has other
    problems of its own."""
    told, before = Told(), tuple[str, ...]()
    while True:
        for alarm in told.news(topics.alarms(), time.time()):
            tell = log.error if alarm.standing is Standing.ENDED else log.warning
            tell("expiry", about=alarm.text)
        if (problems := tuple(topics.own_problems())) != before:
            before = problems
            changed(problems)
        await trio.sleep(EXPIRY_LOOK)
