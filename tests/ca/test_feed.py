import msgspec
import pytest
import trio

from ca import feed as feeds
from ca.contract import Delta
from ca.feed import Feed, Step
from ca.registry import State, change
from ca.resources.kinds import Resource, decode
from ca.resources.metadata import Key
from tests.ca.objects import node, workload


@pytest.fixture
def state() -> State:
    return change(State("i"), [node("a")]).state


def deltas(step: Step) -> list[Delta]:
    found = [msgspec.json.decode(frame[4:], type=Delta) for frame in step.frames]
    assert all(int.from_bytes(f[:4], "big") == len(f) - 4 for f in step.frames)
    assert [d.more for d in found] == [True] * (len(found) - 1) + [False]
    return found


def put(step: Step) -> dict[Key, Resource]:
    found = [decode(raw) for delta in deltas(step) for raw in delta.put]
    return {r.key: r for r in found}


async def test_the_first_change_goes_at_once_and_the_next_ones_together(
    state: State, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    feed = Feed(state, tick=10)
    nursery.start_soon(feed.run)
    start = trio.current_time()
    one = change(state, [node("b")]).state
    feed.publish(one)
    step = await feed.after(1)
    assert (step.state.revision, trio.current_time() - start) == (2, 0)
    two = change(one, [node("c")]).state
    feed.publish(two)
    three = change(two, [node("d")], [Key("Node", "", "b")]).state
    feed.publish(three)
    step = await feed.after(2)
    assert trio.current_time() - start == 10
    assert set(put(step)) == {Key("Node", "", "c"), Key("Node", "", "d")}
    assert [d.name for d in deltas(step)[0].delete] == ["b"]
    assert step.state is three


async def test_watchers_share_the_same_bytes(state: State, nursery: trio.Nursery) -> None:
    feed = Feed(state, tick=0.001)
    nursery.start_soon(feed.run)
    steps: list[Step] = []

    async def watch() -> None:
        steps.append(await feed.after(1))

    async with trio.open_nursery() as watching:
        for _ in range(3):
            watching.start_soon(watch)
        await trio.testing.wait_all_tasks_blocked()
        feed.publish(change(state, [node("b")]).state)
    assert steps[0].frames[0] is steps[1].frames[0] is steps[2].frames[0]
    whole = [await feed.start(0, "") for _ in range(2)]
    assert whole[0] is whole[1]


async def test_one_that_fell_behind_the_ring_gets_one_delta(
    state: State, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(feeds, "RING", 2)
    feed = Feed(state, tick=1)
    nursery.start_soon(feed.run)
    for i in range(5):
        state = change(state, [node(f"n{i}")], [Key("Node", "", f"n{i - 1}")] if i else []).state
        feed.publish(state)
        await trio.sleep(2)
    step = await feed.after(1)
    assert (step.state.revision, set(put(step))) == (6, {Key("Node", "", "n4")})
    assert not deltas(step)[0].reset
    assert (await feed.after(5)).before == 5


async def test_a_large_mesh_goes_in_pieces(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "CHUNK", 500)
    state = change(state, [workload(f"w{i}") for i in range(50)]).state
    step = await Feed(state, tick=1).start(7, "other")
    assert put(step) == dict(state.objects)
    assert [d.reset for d in deltas(step)] == [True] + [False] * (len(step.frames) - 1)
    assert len(step.frames) > 5
    assert all(len(f) < 1500 for f in step.frames)


async def test_nobody_but_its_node_sees_how_a_workload_is_recognised(state: State) -> None:
    state = change(state, [workload("web", uid=4711)]).state
    step = await Feed(state, tick=1).start(0, "")
    assert b"4711" not in b"".join(step.frames)
    assert put(step)[Key("Workload", "shop", "web")] == workload("web")


async def test_who_is_up_to_date_is_told_so(state: State) -> None:
    (delta,) = deltas(await Feed(state, tick=1).start(1, "i"))
    assert delta == Delta(revision=1, incarnation="i")
