"""The report to the centre: a scripted client, a virtual clock."""

import itertools
from collections.abc import AsyncIterator, Callable

import msgspec
import pytest
import trio

from agent.discovery.found import Found
from agent.discovery.registration import AGAIN, GATHER, Registration
from agent.snapshot import Snapshot
from ca.client import ClientError
from ca.contract import FoundRequest, FoundResponse, NotRegistered
from ca.resources.metadata import Key, Metadata
from ca.resources.node import Discovery, Node, NodeSpec
from ca.resources.workload import Match, Workload

WEB, API = (Found("files", "f", "shop", n, n, Match(uid=u), ()).workload("n1", ()) for n, u in (("web", 1), ("api", 2)))
ALL = frozenset({"files"})


class Centre:
    """Takes reports; `refuses` names what it does not take, `away` says that it does not answer."""

    def __init__(self) -> None:
        self.reports: list[tuple[float, list[str]]] = []
        self.refuses: dict[str, str] = {}
        self.away = False
        self.revision = 1
        self.meanwhile: Callable[[], None] = lambda: None

    async def found(self, request: FoundRequest) -> FoundResponse:
        await trio.lowlevel.checkpoint()
        self.meanwhile()
        names = [msgspec.json.decode(raw)["metadata"]["name"] for raw in request.workloads]
        self.reports.append((trio.current_time(), names))
        if self.away:
            raise ClientError("the centre is away")
        self.revision += len(names) > len(self.refuses)
        return FoundResponse(self.revision, [NotRegistered("shop", n, why) for n, why in self.refuses.items()])


class Rig:
    def __init__(self) -> None:
        self.centre = Centre()
        self.registration = Registration(lambda: self.centre, lambda: None)
        self.snapshot = Snapshot("n1")

    async def want(self, *workloads: Workload) -> None:
        self.registration.want({w.key: w for w in workloads}, ALL)
        await self.quiet()

    async def quiet(self) -> None:
        await trio.sleep(3 * GATHER)

    async def mesh(self, *put: Node | Workload, delete: tuple[Key, ...] = ()) -> int:
        """The mesh changes; how many reports were made over it."""
        before = len(self.centre.reports)
        self.centre.revision += 1
        self.snapshot = self.snapshot.apply(self.centre.revision, put, delete)
        self.registration.look(self.snapshot)
        await self.quiet()
        return len(self.centre.reports) - before


def node(*namespaces: str) -> Node:
    return Node(Metadata("n1"), NodeSpec("10.0.0.1", discovery=Discovery(namespaces)))


@pytest.fixture
async def rig(autojump_clock: object, nursery: trio.Nursery) -> AsyncIterator[Rig]:
    made = Rig()
    nursery.start_soon(made.registration.run)
    yield made
    nursery.cancel_scope.cancel()


async def test_a_flock_of_changes_is_one_report(rig: Rig, autojump_clock: object) -> None:
    rig.registration.want({WEB.key: WEB}, ALL)
    await rig.want(WEB, API)
    await rig.want(WEB, API)
    assert [names for _, names in rig.centre.reports] == [["web", "api"]]
    assert rig.registration.answered
    assert not rig.registration.answered.refused


async def test_nothing_is_reported_before_something_is_known(rig: Rig, autojump_clock: object) -> None:
    rig.registration.met()
    rig.registration.look(rig.snapshot)
    await trio.sleep(100)
    assert rig.centre.reports == []


async def test_pauses_grow_while_the_centre_is_away_and_a_session_ends_them(rig: Rig, autojump_clock: object) -> None:
    rig.centre.away = True
    await rig.want(WEB)
    await trio.sleep(200)
    times = [t for t, _ in rig.centre.reports]
    pauses = [round(b - a - GATHER) for a, b in itertools.pairwise(times)]
    assert pauses[:6] == [1, 2, 4, 8, 16, 30]
    assert set(pauses[6:]) == {30}
    assert "not registered yet: the centre is away" in rig.registration.problem
    rig.centre.away = False
    await rig.quiet()
    rig.registration.met()
    await rig.quiet()
    assert rig.registration.answered
    assert rig.registration.problem == ""


async def test_its_own_change_is_no_news(rig: Rig, autojump_clock: object) -> None:
    await rig.mesh(node("shop"))
    await rig.want(WEB)
    assert await rig.mesh(WEB) == 0
    assert await rig.mesh(msgspec.structs.replace(WEB, metadata=Metadata("web", "shop", {"mesh": "on"}))) == 0


async def test_a_workload_that_is_deleted_or_taken_over_is_reported_again(rig: Rig, autojump_clock: object) -> None:
    await rig.mesh(node("shop"))
    await rig.want(WEB)
    assert await rig.mesh(WEB) == 0
    assert await rig.mesh(delete=(WEB.key,)) == 1
    assert await rig.mesh(WEB) == 0
    taken = msgspec.structs.replace(WEB, spec=msgspec.structs.replace(WEB.spec, ports=(80,)))
    assert await rig.mesh(taken) == 1


async def test_a_right_that_is_given_or_taken_is_reported_under(rig: Rig, autojump_clock: object) -> None:
    await rig.mesh(node())
    rig.centre.refuses = {"web": "namespace shop is not among those"}
    await rig.want(WEB)
    assert rig.registration.answered
    assert rig.registration.answered.refused == {WEB.key: "namespace shop is not among those"}
    rig.centre.refuses = {}
    assert await rig.mesh(node("shop")) == 1
    assert not rig.registration.answered.refused
    assert await rig.mesh(node("shop", "mail"), WEB) == 1


async def test_a_right_given_while_the_report_was_under_way_is_not_missed(rig: Rig, autojump_clock: object) -> None:
    await rig.mesh(node())
    rig.centre.refuses = {"web": "no"}
    rig.centre.meanwhile = lambda: rig.registration.look(rig.snapshot.apply(9, [node("shop")], ()))
    await rig.want(WEB)
    await rig.quiet()
    assert len(rig.centre.reports) == 2


async def test_what_is_refused_is_tried_again_when_who_stood_there_is_gone(rig: Rig, autojump_clock: object) -> None:
    await rig.mesh(node("shop"), WEB)
    rig.centre.refuses = {"web": "an operator applied it"}
    await rig.want(WEB)
    assert await rig.mesh(delete=(WEB.key,)) == 1
    before = len(rig.centre.reports)
    await trio.sleep(2 * AGAIN + 1)  # who holds what it claims may go unseen
    assert len(rig.centre.reports) == before + 2
