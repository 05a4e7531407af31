"""Sources that fail, and what is said of what they found: scripted sources, a virtual clock."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from agent.discovery import listening
from agent.discovery.discovery import Discovery
from agent.discovery.found import SOURCES, Found, Publish, Seen
from agent.discovery.registration import Registrar
from ca.client import ClientError
from ca.contract import FoundRequest, FoundResponse
from ca.resources.metadata import Key
from ca.resources.workload import Match

WEB = Found("files", "web.yaml", "shop", "web", "web", Match(uid=33), (80,))
API = Found("users", "user api", "shop", "api", "api", Match(uid=34), (81,))


class Scripted:
    """Publishes what it is told to, and raises what it is told to."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.runs: list[float] = []
        self.publish: Publish = lambda seen: None
        self.breaks: Exception | None = None
        self._broken = trio.Event()

    async def run(self, publish: Publish) -> None:
        self.publish = publish
        self.runs.append(trio.current_time())
        if self.breaks is None:
            await self._broken.wait()
        raise self.breaks or ExceptionGroup("both", [OSError("gone")])

    def fail(self, error: Exception) -> None:
        self.breaks = error
        self._broken.set()


class Centre:
    def __init__(self) -> None:
        self.sources: list[list[str]] = []

    async def found(self, request: FoundRequest) -> FoundResponse:
        await trio.lowlevel.checkpoint()
        self.sources.append(request.sources)
        self.gone = [name.name for name in request.gone]
        return FoundResponse(len(self.sources))


class Away:
    async def found(self, request: FoundRequest) -> FoundResponse:
        await trio.lowlevel.checkpoint()
        raise ClientError("the centre is away")


class Rig:
    def __init__(self, client: Callable[[], Registrar]) -> None:
        self.files, self.users = Scripted("files"), Scripted("users")
        self.news = trio.Event()
        self.discovery = Discovery("n1", (self.files, self.users), client, self._changed)

    def _changed(self) -> None:
        self.news.set()
        self.news = trio.Event()

    def states(self) -> dict[str, str]:
        return {row.workload: row.state for row in self.discovery.answer(lambda found: "").rows}


@pytest.fixture
def centre() -> Centre:
    return Centre()


@pytest.fixture
async def rig(autojump_clock: object, nursery: trio.Nursery, centre: Centre) -> AsyncIterator[Rig]:
    made = Rig(lambda: centre)
    nursery.start_soon(made.discovery.run)
    await trio.sleep(1)
    yield made
    nursery.cancel_scope.cancel()


async def test_what_a_source_has_not_seen_yet_is_not_taken_for_gone(
    rig: Rig, centre: Centre, autojump_clock: object
) -> None:
    others = sorted(set(SOURCES) - {"files", "users"})
    assert centre.sources == [others]
    rig.files.publish(Seen((WEB,)))
    await trio.sleep(1)
    rig.users.publish(Seen((API,), whole=False))
    await trio.sleep(1)
    assert centre.sources == [others, sorted([*others, "files"]), sorted([*others, "files"])]
    assert rig.states() == {"shop/api": "registered", "shop/web": "registered"}
    assert rig.discovery.problems == ()


@pytest.mark.parametrize("error", [RuntimeError("bug"), ExceptionGroup("both", [OSError("x")])])
async def test_a_source_that_fails_takes_nothing_with_it(rig: Rig, error: Exception, autojump_clock: object) -> None:
    rig.files.publish(Seen((WEB,)))
    rig.users.publish(Seen((API,)))
    await trio.sleep(1)
    rig.files.fail(error)
    await trio.sleep(100)
    assert rig.states() == {"shop/api": "registered", "shop/web": "registered"}
    assert "discovery of files failed and is started again" in rig.discovery.problems[0]
    pauses = [b - a for a, b in zip(rig.files.runs[1:], rig.files.runs[2:], strict=False)]
    assert pauses[:4] == pytest.approx([2, 4, 8, 16])
    rig.files.breaks = None
    await trio.sleep(31)
    rig.files.publish(Seen())
    assert rig.discovery.problems == ()
    assert rig.states() == {"shop/api": "registered"}


async def test_a_kernel_that_cannot_be_asked_takes_nothing_with_it(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the real clock: a thread asks it."""
    rig = Rig(lambda: centre)

    def listened(wanted: object) -> dict[Key, frozenset[int]]:
        raise OSError(24, "Too many open files")

    async def becomes(**states: str) -> None:
        with trio.fail_after(10):
            while rig.states() != {f"shop/{name}": state for name, state in states.items()}:
                await rig.news.wait()

    async with trio.open_nursery() as nursery:
        with monkeypatch.context() as patched:
            patched.setattr(listening, "listened", listened)
            nursery.start_soon(rig.discovery.run)
            await trio.testing.wait_all_tasks_blocked()
            rig.files.publish(Seen((WEB,)))
            rig.users.publish(Seen((replace(API, ports=None),)))
            await becomes(web="registered", api="waiting")
            with trio.fail_after(10):
                while not rig.discovery.problems:
                    await rig.news.wait()
            assert "discovery of ports failed" in rig.discovery.problems[0]
        await becomes(web="registered", api="registered")
        assert rig.discovery.problems == ()
        nursery.cancel_scope.cancel()


async def test_what_was_there_and_is_not_is_gone_also_where_more_may_be(
    rig: Rig, centre: Centre, autojump_clock: object
) -> None:
    rig.users.publish(Seen((API,), ("a user is lacking",), whole=False))
    await trio.sleep(1)
    assert centre.gone == []
    rig.users.publish(Seen((), ("a user is lacking",), whole=False))
    await trio.sleep(1)
    assert centre.gone == ["api"]
    rig.files.publish(Seen((WEB,)))
    await trio.sleep(1)
    assert centre.gone == []


async def test_the_centre_being_away_is_a_problem_only_for_who_has_something_to_tell(autojump_clock: object) -> None:
    rig = Rig(Away)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rig.discovery.run)
        await trio.sleep(10)
        rig.files.publish(Seen())
        assert rig.discovery.problems == ()
        rig.files.publish(Seen((WEB,)))
        await trio.sleep(60)
        assert rig.states() == {"shop/web": "waiting"}
        assert rig.discovery.problems == ("what was found here is not registered yet: the centre is away",)
        nursery.cancel_scope.cancel()
