import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from ca.authority import Authority
from ca.centre import Centre
from ca.resources.kinds import decode
from ca.store import Stage, StoreError
from ca.store.sqlite import SqliteStore
from tests.ca.objects import node
from tests.ca.running import DOMAIN


class Disk:
    """Stands at one stage of every commit while `at` names it."""

    def __init__(self) -> None:
        self.at: Stage | None = None
        self.fail = False
        self.reached: Callable[[], None] = lambda: None
        self.go_on = threading.Event()

    def __call__(self, stage: Stage, number: int) -> None:
        if stage is self.at:
            trio.from_thread.run_sync(self.reached)
            assert self.go_on.wait(10)
            if self.fail:
                raise OSError("no space left on device")


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def centre(tmp_path: Path, disk: Disk) -> Iterator[Centre]:
    with SqliteStore.open(tmp_path, create=True, hook=disk) as store:
        authority = Authority.create(store, store.keys, DOMAIN, datetime.now(UTC))
        yield Centre(store, authority, advertise="10.0.0.1:15012")


async def test_nobody_sees_a_change_that_is_not_on_disk(centre: Centre, disk: Disk, nursery: trio.Nursery) -> None:
    nursery.start_soon(centre.feed.run)
    reached = trio.Event()
    disk.at, disk.reached = Stage.WRITTEN, reached.set
    answered: list[int] = []

    async def apply() -> None:
        answered.append((await centre.apply([node("a")])).revision)

    async with trio.open_nursery() as applying:
        applying.start_soon(apply)
        await reached.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert (answered, centre.state.revision, centre.feed.state.revision) == ([], 0, 0)
        disk.go_on.set()
    assert answered == [1]
    step = await centre.feed.after(0)
    assert step.state.node("a") == node("a")


async def test_a_change_that_the_disk_refused_never_was(centre: Centre, disk: Disk) -> None:
    disk.at, disk.fail = Stage.WRITTEN, True
    disk.go_on.set()
    with pytest.raises((StoreError, OSError)):
        await centre.apply([node("a")])
    assert centre.state.revision == 0
    with pytest.raises((StoreError, OSError)):
        await centre.create_token("b", 60)
    assert not centre.state.objects


async def test_who_gives_up_in_the_middle_of_a_commit_changes_nothing_of_it(centre: Centre, disk: Disk) -> None:
    reached = trio.Event()
    disk.at, disk.reached = Stage.DURABLE, reached.set
    async with trio.open_nursery() as applying:
        applying.start_soon(centre.apply, [node("a")])
        await reached.wait()
        applying.cancel_scope.cancel()
        disk.go_on.set()
    assert centre.state.node("a") == node("a")
    disk.at = None
    assert (await centre.apply([node("b")])).revision == 2


async def test_changes_at_the_same_moment_come_one_after_another(centre: Centre) -> None:
    revisions: list[int] = []

    async def apply(i: int) -> None:
        revisions.append((await centre.apply([node(f"n{i}", f"10.0.0.{i}")])).revision)

    async with trio.open_nursery() as nursery:
        for i in range(1, 21):
            nursery.start_soon(apply, i)
    assert sorted(revisions) == list(range(1, 21))
    listing = centre.list("Node", "", "")
    assert listing.revision == 20
    assert [decode(raw).key.name for raw in listing.items] == sorted(f"n{i}" for i in range(1, 21))
