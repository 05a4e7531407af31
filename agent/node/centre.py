"""The node's session with its centre: kept up for as long as the agent lives, and missed by nobody while it is not.

Each session begins with what the node has (revision and incarnation), so that the centre sends what came since. Between
sessions there is a pause of 1 s, doubling to 30 s, less a random part of it, so that a thousand nodes do not return
at once.
"""

import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec
import structlog
import trio

from agent.node.view import Change, Intake
from ca.client import ClientError, Timed, boot_time
from ca.contract import (
    CENTRE_FRAMES,
    NODE_FRAMES,
    VERSION,
    Answer,
    Ask,
    ContractError,
    Delta,
    Hello,
    Private,
    Report,
    Roots,
    TimeIs,
    WhatTime,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger()

FIRST_PAUSE, LAST_PAUSE = 1.0, 30.0
REPEAT = 20.0
"""Seconds after which a report is repeated: it tells the centre that we live, and us that the connection does."""
ASKS = 8
"""Questions answered at once."""


class Unanswered(Exception):
    """The question cannot be answered; the message says why."""


class Link(Protocol):
    """A session, as `ca.client` has it; ClientError when it is over."""

    async def send(self, frame: NODE_FRAMES) -> None: ...

    async def receive(self) -> CENTRE_FRAMES: ...


class Sessions(Protocol):
    """The centre as far as it is called here."""

    def session(self) -> AbstractAsyncContextManager[Link]: ...


class Centre:
    """`client` gives one with the node's present certificate. `took` gets each new view, `trusted` new roots, and
    `answer` the questions (topic, JSON) -> JSON; it raises Unanswered. `met` is called when a session begins; `timed`
    hears the centre's time."""

    def __init__(
        self,
        client: Callable[[], Sessions],
        intake: Intake,
        version: str,
        *,
        took: Callable[[Change], None],
        trusted: Callable[[bytes], Awaitable[None]],
        answer: Callable[[str, bytes], Awaitable[bytes]],
        met: Callable[[], None],
        timed: Timed | None = None,
        rng: random.Random,
    ) -> None:
        self.connected = False
        self.problem = "not tried yet"
        self._client, self._intake, self._version = client, intake, version
        self._took, self._trusted, self._answer, self._met = took, trusted, answer, met
        self._rng, self._timed = rng, timed
        self._report = Report(0)
        self._news = trio.Event()
        self._again = trio.Event()
        self._session = trio.CancelScope()

    def report(self, active: int, problems: tuple[str, ...]) -> None:
        """What the centre should know of us from now on."""
        self._report = Report(active, list(problems))
        self._news.set()

    def hurry(self) -> None:
        """There is a reason to try again at once, if there is no session."""
        self._again.set()

    def anew(self) -> None:
        """The machine slept, and the session most likely died of it without our knowing: begin another at once."""
        self._session.cancel()
        self._again.set()

    async def run(self) -> None:
        """Until cancelled."""
        pause = FIRST_PAUSE
        while True:
            problem = await self._once()
            if self.connected:
                pause = FIRST_PAUSE
                log.warning("session-ended", why=problem)
            elif problem != self.problem:
                log.warning("centre-away", why=problem)
            self.connected, self.problem = False, problem
            self._again = trio.Event()
            with trio.move_on_after(pause * self._rng.uniform(0.5, 1.0)):
                await self._again.wait()
            pause = min(pause * 2, LAST_PAUSE)

    async def _once(self) -> str:
        """One session from begin to end; returns why it ended."""
        with trio.CancelScope() as self._session:
            try:
                async with self._client().session() as link:
                    return await self._talk(link)
            except ClientError as error:
                return str(error)
        return "this machine slept"

    async def _talk(self, link: Link) -> str:
        self._intake.restart()
        view = self._intake.view
        # Without an incarnation the view has gaps, whatever its revision.
        revision = view.snapshot.revision if view.incarnation else 0
        await link.send(Hello(VERSION, self._version, revision, view.incarnation))
        why = ""
        async with trio.open_nursery() as nursery:

            async def end(work: Callable[[], Awaitable[None]]) -> None:
                nonlocal why
                try:
                    await work()
                except (ClientError, ContractError) as error:
                    why = why or str(error)
                    nursery.cancel_scope.cancel()

            nursery.start_soon(end, lambda: self._listen(link, nursery))
            nursery.start_soon(end, lambda: self._tell(link))
        return why

    async def _listen(self, link: Link, nursery: trio.Nursery) -> None:
        asked = trio.CapacityLimiter(ASKS)
        while True:
            frame = await link.receive()
            if not self.connected:
                self.connected, self.problem = True, ""
                log.info("session-opened", revision=self._intake.view.snapshot.revision)
                self._met()
            match frame:
                case Delta():
                    self._change(self._intake.delta(frame))
                case Private():
                    self._change(self._intake.private(frame))
                case Roots(pem):
                    await self._trusted(pem.encode())
                case TimeIs(sent=sent, time=time) if self._timed:
                    self._timed(time, sent, boot_time())
                case Ask():
                    nursery.start_soon(self._reply, link, frame, asked)

    def _change(self, change: Change | None) -> None:
        if change:
            self._took(change)

    async def _tell(self, link: Link) -> None:
        while True:
            self._news = trio.Event()
            await link.send(self._report)
            if self._timed:
                await link.send(WhatTime(boot_time()))
            with trio.move_on_after(REPEAT):
                await self._news.wait()

    async def _reply(self, link: Link, ask: Ask, limit: trio.CapacityLimiter) -> None:
        async with limit:
            try:
                answer = Answer(ask.id, msgspec.Raw(await self._answer(ask.topic, bytes(ask.body))))
            except Unanswered as error:
                answer = Answer(ask.id, error=str(error))
            try:
                await link.send(answer)
            except (ClientError, ContractError):
                log.info("answer-lost", topic=ask.topic[:100])
