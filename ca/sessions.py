"""The centre's side of the sessions with nodes: who is there, what each is told, what each said.

One session per node: a newer one ends the older, whose connection is most likely dead without knowing. A session holds
no queue of changes (see feed); what bounds it is `stall`: a peer that does not take a frame within that time is
dropped, and resumes by revision when it comes back.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import structlog
import trio

from ca.contract import (
    NODE_FRAMES,
    Answer,
    Ask,
    ContractError,
    Hello,
    LocalMatch,
    NodeStatus,
    Private,
    Report,
    Roots,
    TimeIs,
    WhatTime,
    check_version,
)
from ca.feed import Feed, Step
from ca.frames import FramesEnded, FrameStream, encode
from ca.registry import State

HELLO_WITHIN = 10.0
"""Seconds that a node has for its first frame."""

STALL = 30.0
"""Seconds that a peer has to take one frame (a quarter of a megabyte): the longest that a stalled one costs."""

ASKS = 8
"""Questions to one node that may be under way at once."""

_PROBLEMS = 50
"""Problems kept of one report: a node cannot fill the centre's memory."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class AskError(Exception):
    """The node did not answer; the message says why."""


@dataclass(slots=True)
class Session:
    """One connected node. `scope` ends it, and `ended` says why that was."""

    node: str
    scope: trio.CancelScope
    frames: FrameStream[NODE_FRAMES]
    serial: str = ""
    ended: str = "replaced by a newer one, or ended by the centre"
    sending: trio.Lock = field(default_factory=trio.Lock)
    asked: dict[int, "trio.MemorySendChannel[Answer]"] = field(default_factory=dict)
    questions: "tuple[trio.MemorySendChannel[Ask], trio.MemoryReceiveChannel[Ask]]" = field(
        default_factory=lambda: trio.open_memory_channel[Ask](ASKS)
    )


class Sessions:
    """All sessions of this centre. `clock` gives unix time, `roots` the PEM of the roots now in force."""

    def __init__(
        self, feed: Feed, roots: Callable[[], str], clock: Callable[[], float], *, stall: float = STALL
    ) -> None:
        self._feed = feed
        self._roots = roots
        self._clock = clock
        self._stall = stall
        self._live: dict[str, Session] = {}
        self._status: dict[str, NodeStatus] = {}
        self._ids = itertools.count(1)

    def status(self, state: State) -> list[NodeStatus]:
        """Every node of the mesh, in the order of names, and what is known of it since the centre started."""
        names = sorted(k.name for k in state.objects if k.kind == "Node")
        there = set(names)
        self._status = {n: s for n, s in self._status.items() if n in there}
        found = []
        for name in names:
            node, known = state.node(name), self._status.get(name, NodeStatus(name))
            found.append(
                msgspec.structs.replace(
                    known,
                    address=node.spec.address if node else "",
                    connected=name in self._live,
                    away="" if name in self._live else known.away,
                )
            )
        return found

    def connected(self, node: str) -> bool:
        """Whether the node has a session now."""
        return node in self._live

    def drop(self, node: str) -> None:
        """End the node's session, if it has one."""
        if session := self._live.get(node):
            session.scope.cancel()

    def drop_all(self) -> None:
        """End every session."""
        for session in self._live.values():
            session.scope.cancel()

    async def ask(self, node: str, topic: str, body: msgspec.Raw, seconds: float) -> msgspec.Raw:
        """Ask a connected node, and wait at most so long for its answer; AskError if there is none."""
        session = self._live.get(node)
        if session is None:
            raise AskError(f"node {node} is not connected")
        if len(session.asked) >= ASKS:
            raise AskError(f"node {node} has {ASKS} questions to answer already; ask again later")
        ask = Ask(next(self._ids), topic, body)
        send, receive = trio.open_memory_channel[Answer](1)
        session.asked[ask.id] = send
        try:
            with receive, send, trio.fail_after(seconds):
                await session.questions[0].send(ask)
                answer = await receive.receive()
        except trio.TooSlowError as e:
            raise AskError(f"node {node} did not answer within {seconds:g} s") from e
        except (trio.EndOfChannel, trio.BrokenResourceError, trio.ClosedResourceError) as e:
            raise AskError(f"node {node} went away before it answered") from e
        finally:
            session.asked.pop(ask.id, None)
        if answer.error:
            raise AskError(f"node {node}: {answer.error}")
        return answer.body

    async def serve(self, node: str, frames: FrameStream[NODE_FRAMES], serial: str = "") -> None:
        """Run the node's session until it ends, for whatever reason; the caller then closes the stream. `serial` is
        that of the certificate it was opened with."""
        bound = log.bind(node=node)
        session = Session(node, trio.CancelScope(), frames, serial)
        try:
            with trio.fail_after(HELLO_WITHIN):
                hello = await frames.receive()
            if not isinstance(hello, Hello):
                raise ContractError(f"the first frame must be hello, not {type(hello).__name__.lower()}")
            self._heard(node, agent_version=hello.agent_version[:100], contract=hello.version[:20])
            check_version(hello.version)
            self.drop(node)
            self._live[node] = session
            bound.info("session-opened", revision=hello.revision, agent=hello.agent_version[:100])
            with session.scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._tell, session, hello)
                    nursery.start_soon(self._relay_questions, session)
                    await self._hear(session)
            why = session.ended
        except* FramesEnded as e:
            why = str(e.exceptions[0])
        except* ContractError as e:
            why = str(e.exceptions[0])
        except* trio.TooSlowError:
            why = "the node takes or sends nothing"
        finally:
            if self._live.get(node) is session:
                del self._live[node]
            session.questions[1].close()
            for waiting in session.asked.values():
                waiting.close()
        if node not in self._live:
            before = self._status.get(node, NodeStatus(node))
            self._status[node] = msgspec.structs.replace(before, away=why[:500])
        bound.info("session-ended", why=why)

    async def _tell(self, session: Session, hello: Hello) -> None:
        await self._send(session, encode(Roots(self._roots())))
        step = await self._feed.start(hello.revision, hello.incarnation)
        told: tuple[LocalMatch, ...] | None = None
        hosted: object = None
        # Asked of the newest state: the first step may be a kept one from before this node was there.
        while self._feed.state.member(session.node, session.serial):
            now = step.state.hosted.get(session.node)
            if told is None or now is not hosted:
                # The map's identity is the cheap test, most steps touch other nodes; the matches are the true one.
                hosted, matches = now, private(step.state, session.node)
                if matches != told:
                    told = matches
                    await self._send(session, encode(Private(step.state.revision, list(matches))))
            await self._send_step(session, step)
            step = await self._feed.after(step.state.revision)
        log.info("node-deleted-or-revoked", node=session.node)
        session.ended = "the node, or its certificate, is revoked (culvert get revocations)"
        session.scope.cancel()

    async def _send_step(self, session: Session, step: Step) -> None:
        for frame in step.frames:
            await self._send(session, frame)

    async def _relay_questions(self, session: Session) -> None:
        async for ask in session.questions[1]:
            await self._send(session, encode(ask))

    async def _send(self, session: Session, data: bytes) -> None:
        async with session.sending:
            with trio.fail_after(self._stall):
                await session.frames.send_encoded(data)

    async def _hear(self, session: Session) -> None:
        while True:
            match await session.frames.receive():
                case Report(active=active, problems=problems):
                    self._heard(session.node, active=active, problems=[p[:500] for p in problems[:_PROBLEMS]])
                case Answer() as answer:
                    if waiting := session.asked.pop(answer.id, None):
                        waiting.send_nowait(answer)
                    self._heard(session.node)
                case WhatTime(sent=sent):
                    await self._send(session, encode(TimeIs(sent, self._clock())))
                case Hello():
                    raise ContractError("a second hello in one session")

    def _heard(self, node: str, **facts: object) -> None:
        before = self._status.get(node, NodeStatus(node))
        self._status[node] = msgspec.structs.replace(before, seen=self._clock(), **facts)


def private(state: State, node: str) -> tuple[LocalMatch, ...]:
    """How the node recognises its workloads, in the order of their keys."""
    return tuple(LocalMatch(k.namespace, k.name, m) for k, m in state.matches(node).items())
