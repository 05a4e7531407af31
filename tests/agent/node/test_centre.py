"""The session with the centre: a scripted link for what it says, a virtual clock for the pauses between."""

import contextlib
import random
from collections.abc import AsyncIterator

import msgspec
import pytest
import structlog
import trio
import trio.testing

from agent.node.centre import REPEAT, Centre, Unanswered
from agent.node.view import Change, Intake, MeshView
from ca.client import ClientError
from ca.contract import CENTRE_FRAMES, NODE_FRAMES, VERSION, Answer, Ask, Hello, LocalMatch, Private, Report, Roots
from ca.resources.workload import Match
from tests.agent.views import delta, mesh, node, view, workload


class Link:
    """One session; the test plays the centre."""

    def __init__(self) -> None:
        self.to_node, self._incoming = trio.open_memory_channel[CENTRE_FRAMES](100)
        self._outgoing, self.from_node = trio.open_memory_channel[NODE_FRAMES](100)

    async def send(self, frame: NODE_FRAMES) -> None:
        try:
            await self._outgoing.send(frame)
        except trio.BrokenResourceError as error:
            raise ClientError("the session is over") from error

    async def receive(self) -> CENTRE_FRAMES:
        try:
            return await self._incoming.receive()
        except trio.EndOfChannel as error:
            raise ClientError("the session is over") from error

    def end(self) -> None:
        self.to_node.close()


class Client:
    """Gives the links it was given, and fails without any."""

    def __init__(self) -> None:
        self.links: list[Link] = []
        self.tries: list[float] = []

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Link]:
        self.tries.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if not self.links:
            raise ClientError("the centre cannot be called")
        yield self.links.pop(0)


class Node:
    def __init__(self, start: MeshView) -> None:
        self.client = Client()
        self.views: list[MeshView] = []
        self.roots: list[bytes] = []
        self.met = 0
        self.centre = Centre(
            lambda: self.client,
            Intake(start),
            "1.2.3",
            took=self._took,
            trusted=self._trusted,
            answer=self._answer,
            met=self._met,
            rng=random.Random(1),
        )

    def _took(self, change: Change) -> None:
        self.views.append(change.view)

    async def _trusted(self, pem: bytes) -> None:
        self.roots.append(pem)

    async def _answer(self, topic: str, body: bytes) -> bytes:
        if topic != "status":
            raise Unanswered(f"there is no topic {topic}")
        return b'{"topic":"status","body":%s}' % body

    def _met(self) -> None:
        self.met += 1


@pytest.fixture
async def known(autojump_clock, nursery):
    """A node that has revision 5, connected by the first link."""
    made = Node(view(mesh(), node("n1"), revision=5))
    made.client.links = [Link()]
    made.link = made.client.links[0]
    nursery.start_soon(made.centre.run)
    yield made
    nursery.cancel_scope.cancel()


async def test_it_says_what_it_has(known, autojump_clock):
    assert await known.link.from_node.receive() == Hello(VERSION, "1.2.3", 5, "i1")
    assert await known.link.from_node.receive() == Report(0)


async def test_a_view_without_incarnation_is_asked_for_whole(autojump_clock, nursery):
    n = Node(MeshView(view(mesh(), revision=5).snapshot))
    n.client.links = [link := Link()]
    nursery.start_soon(n.centre.run)
    assert await link.from_node.receive() == Hello(VERSION, "1.2.3", 0, "")
    nursery.cancel_scope.cancel()


async def test_views_roots_and_private_parts_are_passed_on(known, autojump_clock):
    await known.link.to_node.send(Roots("PEM"))
    await known.link.to_node.send(Private(6, [LocalMatch("shop", "web", Match(uid=7))]))
    await known.link.to_node.send(delta(6, workload("a"), more=True))
    await known.link.to_node.send(delta(6, workload("web")))
    await trio.testing.wait_all_tasks_blocked()
    assert known.roots == [b"PEM"]
    (got,) = known.views
    assert (got.snapshot.revision, len(got.matches)) == (6, 1)
    assert known.met == 1
    assert known.centre.connected


async def test_a_session_that_was_slept_through_is_begun_anew(known, autojump_clock):
    await known.link.to_node.send(Roots("PEM"))
    await trio.testing.wait_all_tasks_blocked()
    assert known.centre.connected
    known.client.links = [link := Link()]
    slept = trio.current_time()
    known.centre.anew()
    assert isinstance(await link.from_node.receive(), Hello)
    assert trio.current_time() - slept <= 1.0
    await known.link.to_node.send(Roots("OLD"))  # nobody listens there any more
    await trio.testing.wait_all_tasks_blocked()
    assert known.roots == [b"PEM"]


async def test_trying_again_can_be_hurried(known, autojump_clock):
    known.link.end()
    await trio.sleep(100)
    tries, hurried = len(known.client.tries), trio.current_time()
    known.client.links = [link := Link()]
    known.centre.hurry()
    assert isinstance(await link.from_node.receive(), Hello)
    assert (len(known.client.tries), trio.current_time()) == (tries + 1, hurried)


async def test_reports_are_sent_when_they_change_and_repeated(known, autojump_clock):
    await known.link.from_node.receive()
    await known.link.from_node.receive()
    known.centre.report(5, ("a problem",))
    started = trio.current_time()
    assert await known.link.from_node.receive() == Report(5, ["a problem"])
    assert trio.current_time() == started
    assert await known.link.from_node.receive() == Report(5, ["a problem"])
    assert trio.current_time() - started == pytest.approx(REPEAT)


async def test_questions_are_answered(known, autojump_clock):
    await known.link.to_node.send(Ask(7, "status", msgspec.Raw(b"[1]")))
    await known.link.to_node.send(Ask(8, "nonsense"))
    await known.link.from_node.receive()
    await known.link.from_node.receive()
    answers = {a.id: a for a in (await known.link.from_node.receive(), await known.link.from_node.receive())}
    assert bytes(answers[7].body) == b'{"topic":"status","body":[1]}'
    assert answers[8] == Answer(8, error="there is no topic nonsense")


async def test_pauses_grow_and_are_random(known, autojump_clock):
    known.link.end()
    await trio.sleep(400)
    pauses = [b - a for a, b in zip(known.client.tries, known.client.tries[1:], strict=False)]
    for n, pause in enumerate(pauses):
        longest = min(2.0**n, 30.0)
        assert longest / 2 <= pause <= longest
    assert not known.centre.connected
    assert known.centre.problem == "the centre cannot be called"


async def test_after_a_session_the_first_pause_is_short_again(known, autojump_clock):
    known.link.end()
    await trio.sleep(100)
    known.client.links = [second := Link()]
    await second.to_node.send(Roots("PEM"))
    assert isinstance(await second.from_node.receive(), Hello)
    await trio.testing.wait_all_tasks_blocked()
    assert known.centre.connected
    tries = len(known.client.tries)
    ended = trio.current_time()
    second.end()
    await trio.sleep(1.0)
    assert known.client.tries[tries] - ended <= 1.0


async def test_an_away_centre_is_logged_once(known, autojump_clock):
    await known.link.to_node.send(Roots("PEM"))
    await trio.testing.wait_all_tasks_blocked()
    with structlog.testing.capture_logs() as logs:
        known.link.end()
        await trio.sleep(300)
    assert [e["event"] for e in logs] == ["session-ended", "centre-away"]


async def test_nonsense_ends_the_session_and_not_the_agent(known, autojump_clock):
    await known.link.from_node.receive()
    await known.link.from_node.receive()
    bad = delta(6)
    bad = msgspec.structs.replace(bad, put=[msgspec.Raw(b'{"kind":"Workload"}')])
    known.client.links = [second := Link()]
    await known.link.to_node.send(delta(6, workload("a"), more=True))
    await known.link.to_node.send(bad)
    assert await second.from_node.receive() == Hello(VERSION, "1.2.3", 5, "i1")
    await second.to_node.send(delta(6, workload("web")))
    await trio.testing.wait_all_tasks_blocked()
    (got,) = known.views
    assert [w.metadata.name for w in got.snapshot.workloads.values()] == ["web"]
