"""Busy polling: worth it while looks soon find something, and given up where they do not."""

from agent.relay.busypoll import BusyPoll

LONGEST = 200.0


class World:
    """A clock that a look moves on by one; the next event comes `gap` after the last one was found, or slept for."""

    def __init__(self) -> None:
        self.now, self.due, self.looks = 0.0, 0.0, 0
        self.busy_poll = BusyPoll(LONGEST, lambda: self.now)

    def poll(self) -> list[str]:
        self.now += 1
        self.looks += 1
        return ["event"] if self.now >= self.due else []

    def wait(self, gap: float) -> bool:
        """Whether an event that comes in `gap` is found without sleep."""
        self.due = self.now + gap
        found = bool(self.busy_poll.look(self.poll))
        self.now = max(self.now, self.due)
        return found


def test_short_gaps_are_never_slept_through():
    world = World()
    assert all(world.wait(60) for _ in range(1000))


def test_gaps_that_shorten_once_nobody_sleeps_are_given_the_time():
    world = World()
    assert all(world.wait(gap) for gap in (180, 70, 150, 60, 90, 60, 60))


def test_long_gaps_are_slept_through_but_for_a_look_now_and_then():
    world = World()
    assert not any(world.wait(10_000) for _ in range(20_000))
    assert world.looks < 40 * LONGEST


def test_gaps_short_and_long_by_turns_are_slept_through():
    """As at a fixed rate: an answer soon, the next request late. Looking would cost more than sleeping."""
    world = World()
    found = [world.wait(gap) for _ in range(10_000) for gap in (60, 900)]
    assert sum(found) < 100
    assert world.looks < 40 * 2 * LONGEST


def test_a_long_gap_among_many_short_ones_changes_nothing():
    world = World()
    found = [world.wait(2000 if n % 50 == 49 else 30) for n in range(5000)]
    assert found == [n % 50 != 49 for n in range(5000)]


def test_it_comes_back_when_gaps_become_short_again():
    world = World()
    for _ in range(5000):
        world.wait(10_000)
    found = [world.wait(40) for _ in range(1500)]
    assert all(found[-400:])


def test_looks_that_find_something_late_are_not_worth_it():
    world = World()
    found = [world.wait(150) for _ in range(5000)]
    assert sum(found) < 300


def test_nothing_is_looked_for_where_it_is_off():
    looks = []
    assert BusyPoll(0).look(lambda: looks.append("look") or ["event"]) == []
    assert looks == []
