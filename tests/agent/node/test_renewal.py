import random

import pytest
import trio
import trio.testing

from agent.leaf import Leaf
from agent.node.renewal import AT_ONCE, LAST_PAUSE, IssueError, Renewal, Schedule
from ca.resources.metadata import Metadata
from ca.resources.revocation import Revocation, RevocationSpec
from ca.revoked import NONE_REVOKED

DAY = 86400.0
START = 1_800_000_000.0


def leaf(uri: str, now: float = START, life: float = DAY) -> Leaf:
    return Leaf(uri, b"", b"", now - 120, now + life, "1")


def schedule(*identities: str) -> Schedule:
    made = Schedule(random.Random(1))
    made.want(identities)
    return made


def test_all_are_asked_for_once():
    s = schedule("a", "b")
    assert s.take(START, 0) == ["a", "b"]
    assert s.take(START, 0) == []
    assert s.first_try() == {"a", "b"}
    s.failed("a", "no", 0)
    assert s.first_try() == {"b"}
    assert s.reasons() == {"a": "no"}


def test_renewed_around_half_life():
    times = set()
    for seed in range(50):
        s = Schedule(random.Random(seed))
        s.want(["a"])
        s.hold(leaf("a"))
        assert s.take(START + 0.399 * DAY, 0) == []
        times.add(wait := s._entries["a"].renew - START)
        assert 0.4 * DAY <= wait <= 0.5 * DAY
        assert s.take(START + 0.5 * DAY, 0) == ["a"]
        assert s.certified(START + 0.5 * DAY) == {"a"}
        assert s.certified(START + DAY) == set()
    assert len(times) == 50


def test_a_life_shorter_than_it_is_dated_back():
    s = schedule("a")
    s.hold(leaf("a", life=8))
    assert s.take(START + 3, 0) == []
    assert s.take(START + 4, 0) == ["a"]


def test_one_without_any_life_is_no_storm():
    s = schedule("a")
    for n in range(5):
        assert s.take(START, n) == ["a"]
        s.issued(leaf("a", life=-1), n)
        assert s.take(START, n + 0.9) == []


def test_urgent_ones_go_first_and_eight_at_once():
    names = [f"i{n:02}" for n in range(20)]
    s = schedule(*names)
    for name in names[:15]:
        s.hold(leaf(name))
    s.hold(leaf("i03", START - DAY))  # expired
    s.hold(leaf("i07", START - DAY / 4))  # the next to expire
    asked = s.take(START + DAY / 2 + 1, 0)
    assert set(asked[:6]) == {"i03", "i15", "i16", "i17", "i18", "i19"}
    assert asked[6] == "i07"
    assert len(asked) == AT_ONCE
    s.hold(leaf("i15"))
    assert len(s.take(START + DAY / 2 + 1, 0)) == 1


def test_pauses_double_and_stay_within_bounds():
    s = schedule("a")
    now, pauses = 0.0, []
    for _ in range(14):
        assert s.take(START, now) == ["a"]
        pauses.append(s.failed("a", "no", now))
        assert s.take(START, now + pauses[-1] - 0.001) == []
        now += pauses[-1] + 0.001
    for n, pause in enumerate(pauses):
        nominal = min(2.0**n, LAST_PAUSE)
        assert 0.8 * nominal <= pause <= 1.2 * nominal
    s.kick(now)
    assert s.take(START, now + 1) == ["a"]
    assert s.failed("a", "no", now) <= 1.2


def test_a_clock_set_back_does_not_stretch_a_pause():
    s = schedule("a")
    s.take(START, 0)
    pause = s.failed("a", "no", 0)
    assert s.wait(START - DAY, 0) == pytest.approx(pause)
    assert s.take(START - DAY, pause) == ["a"]


def test_a_clock_set_back_before_the_certificate_asks_again():
    s = schedule("a")
    s.hold(leaf("a"))
    assert s.take(START - DAY, 0) == ["a"]


def test_a_failure_is_no_problem_once_the_clock_is_right():
    s = schedule("a")
    s.hold(leaf("a"))
    assert s.take(START + 0.6 * DAY, 0) == ["a"]
    s.failed("a", "this clock is wrong", 0)
    assert s.take(START + 0.6 * DAY, 0.1) == []
    assert s.reasons() == {"a": "this clock is wrong"}
    assert s.take(START, 1000) == []
    assert s.reasons() == {}


def test_who_is_not_wanted_any_more_is_forgotten():
    s = schedule("a", "b")
    s.take(START, 0)
    assert s.want(["b", "c"]) == {"a"}
    assert not s.hold(leaf("a"))
    assert s.failed("a", "no", 0) == 0
    assert s.leaves() == {}


class Centre:
    """Issues by a table of outcomes; every call is noted with its time."""

    def __init__(self, *, jump: float = 0.0) -> None:
        self.calls: list[tuple[str, float]] = []
        self.errors: dict[str, list[str]] = {}
        self.got: list[Leaf] = []
        self.failures: list[tuple[str, str]] = []
        self.jump = jump
        self.busy = self.most = 0
        self.delay = 0.0
        self.renewal = Renewal(self.issue, self.issued, self.failed, self.wall, random.Random(2))

    def wall(self) -> float:
        return START + trio.current_time() + self.jump

    async def issue(self, uri: str) -> Leaf:
        self.calls.append((uri, trio.current_time()))
        self.busy += 1
        self.most = max(self.most, self.busy)
        await trio.sleep(self.delay)
        self.busy -= 1
        if self.errors.get(uri):
            raise IssueError(self.errors[uri].pop(0))
        return leaf(uri, self.wall())

    async def issued(self, new: Leaf) -> None:
        self.got.append(new)

    def failed(self, uri: str, reason: str, _pause: float) -> None:
        self.failures.append((uri, reason))


async def test_a_day_of_renewals(autojump_clock, nursery):
    centre = Centre()
    centre.renewal.want(["a", "b"])
    nursery.start_soon(centre.renewal.run)
    await trio.sleep(DAY)
    assert [uri for uri, _ in centre.calls].count("a") == 3
    assert len(centre.got) == 6


async def test_a_refusal_is_told_and_asked_again(autojump_clock, nursery):
    centre = Centre()
    centre.errors["a"] = ["not registered", "not registered"]
    centre.renewal.want(["a"])
    nursery.start_soon(centre.renewal.run)
    await trio.sleep(10)
    assert centre.failures == [("a", "not registered")] * 2
    assert [x.uri for x in centre.got] == ["a"]


async def test_suspend_is_noticed_within_half_a_minute(autojump_clock, nursery):
    centre = Centre()
    centre.renewal.want(["a"])
    nursery.start_soon(centre.renewal.run)
    await trio.sleep(10)
    centre.jump = DAY / 2
    await trio.sleep(31)
    assert len(centre.got) == 2


async def test_no_more_than_eight_in_flight(autojump_clock, nursery):
    centre = Centre()
    centre.delay = 1
    centre.renewal.want([str(n) for n in range(20)])
    nursery.start_soon(centre.renewal.run)
    await trio.sleep(3.5)
    assert (len(centre.got), centre.most) == (20, AT_ONCE)


async def test_a_request_without_answer_ends(autojump_clock, nursery):
    centre = Centre()
    centre.delay = 1e9
    centre.renewal.want(["a"])
    nursery.start_soon(centre.renewal.run)
    await trio.sleep(31)
    assert centre.failures == [("a", "no answer within 30 s")]


async def test_a_new_want_is_served_at_once(autojump_clock, nursery):
    centre = Centre()
    nursery.start_soon(centre.renewal.run)
    await trio.testing.wait_all_tasks_blocked()
    centre.renewal.want(["a"])
    await trio.testing.wait_all_tasks_blocked()
    assert centre.calls == [("a", 0.0)]


async def test_another_identity_is_refused(autojump_clock, nursery):
    centre = Centre()

    async def issue(_uri: str) -> Leaf:
        return leaf("other")

    centre.renewal._issue = issue
    centre.renewal.want(["a"])
    nursery.start_soon(centre.renewal.run)
    await trio.testing.wait_all_tasks_blocked()
    assert centre.failures == [("a", "the centre signed other instead")]


async def test_a_certificate_from_another_time_is_refused(autojump_clock, nursery):
    centre = Centre()

    async def issue(uri: str) -> Leaf:
        return leaf(uri, START + DAY)

    centre.renewal._issue = issue
    centre.renewal.want(["a"])
    nursery.start_soon(centre.renewal.run)
    await trio.testing.wait_all_tasks_blocked()
    assert "clock" in centre.failures[0][1]


def test_a_revoked_certificate_is_replaced_at_once_and_before_others() -> None:
    s = schedule("a", "b", "c")
    for uri in s.take(START, 0):
        s.hold(Leaf(uri, b"", b"", START, START + DAY, uri.upper()))
    assert s.take(START + 60, 10) == []
    revoked = NONE_REVOKED.put(Revocation(Metadata("x"), RevocationSpec(serials=("b",))))
    assert s.distrust(revoked, 10) == {"b"}
    assert s.take(START + 60, 11) == ["b"]
    s.hold(Leaf("b", b"", b"", START, START + DAY, "BB"))
    assert s.distrust(revoked, 12) == set()
    assert s.take(START + 60, 13) == []


def test_who_was_refused_asks_again_when_what_is_revoked_changes() -> None:
    s = schedule("a")
    for _ in range(8):
        s.take(START, 1e6)
        s.failed("a", "revoked", 1000)
    assert s.take(START, 1002) == []
    s.distrust(NONE_REVOKED, 1001)
    assert s.take(START, 1002) == ["a"]
