"""The task that watches the clocks, on a virtual clock; jumps are what the patched clocks show."""

import pytest
import trio

from agent.clock import CentreClock
from agent.node import timekeeping
from ca.client import ClientError


class World:
    """Clocks that follow trio's, and can be set or slept through."""

    def __init__(self) -> None:
        self.set = self.slept = 0.0
        self.connected = False
        self.valid: frozenset[str] = frozenset()
        self.events: list[tuple[str, float]] = []
        self.clock = CentreClock(self.wall, self.boot)

    def wall(self) -> float:
        return 1_700_000_000 + self.boot() + self.set

    def boot(self) -> float:
        return trio.current_time() + self.slept

    async def measure(self) -> None:
        self.events.append(("measure", trio.current_time()))
        if self.connected is None:
            raise ClientError("away")

    async def keep(self) -> None:
        await timekeeping.keep_time(
            self.clock,
            connected=lambda: bool(self.connected),
            measure=self.measure,
            woke=lambda _slept: self.events.append(("woke", trio.current_time())),
            certified=lambda: self.valid,
            changed=lambda: self.events.append(("changed", trio.current_time())),
            bound=120.0,
            clocks=lambda: (self.wall(), trio.current_time(), self.boot()),
        )

    def count(self, name: str) -> int:
        return sum(event == name for event, _ in self.events)


@pytest.fixture
def world(nursery):
    made = World()
    nursery.start_soon(made.keep)
    return made


async def test_timers_wake_within_a_second_of_a_jump(world, autojump_clock):
    world.connected = True
    await trio.sleep(3600.5)
    assert world.count("woke") == 0
    for number, jump in enumerate((86_400, -86_400, 0.6), 1):
        world.set += jump
        await trio.sleep(1)
        assert world.count("woke") == number
    world.slept += 8 * 3600
    await trio.sleep(1)
    assert world.count("woke") == 4


async def test_the_time_is_asked_for_only_without_a_session_and_failures_do_not_end_it(world, autojump_clock):
    await trio.sleep(0.5)
    for state, expected in ((None, 6), (False, 12), (True, 12)):
        world.connected = state
        await trio.sleep(60)
        assert world.count("measure") in (expected, expected + 1)


async def test_a_certificate_that_ends_is_noticed(world, autojump_clock):
    world.connected = True
    await trio.sleep(0.5)
    world.valid = frozenset({"a"})
    await trio.sleep(1.5)
    assert world.count("changed") == 1
    world.valid = frozenset()
    await trio.sleep(30)
    assert world.count("changed") == 2


async def test_a_clock_that_is_right_again_wakes_as_well(world, autojump_clock):
    world.connected = True
    await trio.sleep(0.5)
    world.clock.heard(world.wall() + 3600, world.boot(), world.boot())
    await trio.sleep(2)
    world.clock.heard(world.wall(), world.boot(), world.boot())
    await trio.sleep(2)
    assert world.count("woke") == 1
