"""Alarms about certificates of this node, by a clock that the test holds."""

import pytest

from agent.leaf import Leaf
from agent.node.expiry import TELL_EVERY, Told, alarms, standing
from ca.lifetimes import Standing

DAY, NOW = 86400.0, 1_800_000_000.0
WEB, DB = "spiffe://t/ns/shop/sa/web", "spiffe://t/ns/shop/sa/db"


def leaf(uri: str = WEB, life: float = DAY) -> Leaf:
    return Leaf(uri, b"", b"", NOW - 120, NOW + life, "1")


@pytest.mark.parametrize("life", [3600.0, DAY, 90 * DAY])
@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, Standing.GOOD), (0.74, Standing.GOOD), (0.76, Standing.LATE), (0.99, Standing.LATE), (1.0, Standing.ENDED)],
)
def test_by_the_share_of_its_own_life(life, share, expected):
    assert standing(leaf(life=life), NOW + share * life) is expected


def test_seconds_of_life_are_no_alarm_from_the_start():
    assert standing(leaf(life=8.0), NOW + 1) is Standing.GOOD
    assert standing(leaf(life=8.0), NOW + 7) is Standing.LATE


def test_what_is_late_is_named_with_its_reason_and_the_first_end_first():
    found = alarms([leaf(DB, DAY), leaf(WEB, DAY / 2)], {WEB: "the centre is away"}, NOW + 0.8 * DAY)
    assert [(a.identity, a.standing) for a in found] == [(WEB, Standing.ENDED), (DB, Standing.LATE)]
    assert found[0].text == (
        f"the certificate of {WEB} ended at 2027-01-15 20:00:00 UTC and is not renewed: the centre is away"
    )
    assert alarms([leaf()], {WEB: "failed once"}, NOW + 0.6 * DAY) == []


def test_told_once_a_day_and_again_when_it_comes_again():
    told = Told()
    late = alarms([leaf()], {}, NOW + 0.8 * DAY)
    ended = alarms([leaf()], {}, NOW + DAY)
    assert told.news(late, NOW) == late
    assert told.news(late, NOW + 60) == []
    assert told.news(ended, NOW + 120) == ended
    assert told.news(ended, NOW + 120 + TELL_EVERY) == ended
    assert told.news([], NOW + 3 * DAY) == []
    assert told.news(late, NOW + 3 * DAY + 1) == late


def test_a_clock_that_was_set_back_silences_nothing():
    told = Told()
    late = alarms([leaf()], {}, NOW + 0.8 * DAY)
    assert told.news(late, NOW + 400 * DAY) == late
    assert told.news(late, NOW) == late
