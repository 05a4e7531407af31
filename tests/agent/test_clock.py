"""Two clocks, measured and compared; every clock is the test's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.clock import CentreClock, Jumps, Skew, spell

HOUR = 3600.0


class Clocks:
    """What the machine's clocks show."""

    def __init__(self) -> None:
        self.wall, self.boot, self.mono = 1_700_000_000.0, 500.0, 500.0
        self.centre = CentreClock(lambda: self.wall, lambda: self.boot)

    def run(self, seconds: float) -> None:
        self.wall, self.boot, self.mono = self.wall + seconds, self.boot + seconds, self.mono + seconds

    def sleep(self, seconds: float) -> None:
        self.wall, self.boot = self.wall + seconds, self.boot + seconds


def test_nothing_is_known_at_first():
    clocks = Clocks()
    assert clocks.centre.skew() is None
    assert clocks.centre.now() == clocks.wall
    assert clocks.centre.objection(0) == ""


def test_the_middle_of_the_round_trip():
    clocks = Clocks()
    clocks.centre.heard(clocks.wall + 10.0, clocks.boot - 0.4, clocks.boot)
    skew = clocks.centre.skew()
    assert skew is not None
    assert skew.ahead == pytest.approx(-10.2)
    assert skew.uncertainty == pytest.approx(0.2)
    assert clocks.centre.now() == pytest.approx(clocks.wall + 10.2)


@given(st.floats(-1e7, 1e7), st.floats(0, 60), st.floats(0, 60), st.floats(0, 1e6), st.floats(-1e7, 1e7), st.booleans())
def test_what_is_true_lies_within_the_uncertainty(skew, there, back, later, step, slept):
    """Whatever the way there and back took, however long ago it was, and whoever set our clock meanwhile."""
    clocks = Clocks()
    sent = clocks.boot
    clocks.run(there)
    told = clocks.wall - skew
    clocks.run(back)
    clocks.centre.heard(told, sent, clocks.boot)
    (clocks.sleep if slept else clocks.run)(later)
    clocks.wall += step
    known = clocks.centre.skew()
    assert known is not None
    assert abs(known.ahead - (skew + step)) <= known.uncertainty + 1e-3


def test_a_better_measurement_stays_until_it_is_old():
    clocks = Clocks()
    clocks.centre.heard(clocks.wall, clocks.boot - 0.002, clocks.boot)
    clocks.run(10)
    clocks.centre.heard(clocks.wall - 0.1, clocks.boot - 0.8, clocks.boot)
    assert abs(clocks.centre.skew().ahead) < 0.01
    clocks.run(2 * HOUR)
    clocks.centre.heard(clocks.wall, clocks.boot - 0.8, clocks.boot)
    assert clocks.centre.skew().uncertainty == pytest.approx(0.4)


def test_a_centre_whose_clock_was_set_is_believed():
    clocks = Clocks()
    clocks.centre.heard(clocks.wall, clocks.boot - 0.002, clocks.boot)
    clocks.centre.heard(clocks.wall + HOUR, clocks.boot - 0.2, clocks.boot)
    assert clocks.centre.skew().ahead == pytest.approx(-HOUR, abs=0.2)


def test_what_is_beyond_the_bound_is_refused_with_the_skew():
    clocks = Clocks()
    clocks.centre.heard(clocks.wall + 2 * HOUR, clocks.boot - 0.01, clocks.boot)
    said = clocks.centre.objection(120)
    assert "this machine's clock is 2 h 0 min behind the centre's" in said
    assert "max_skew" in said
    clocks.wall += 2 * HOUR - 100  # set by hand: at once it is good, before anything was measured again
    assert clocks.centre.objection(120) == ""
    clocks.wall += 300
    assert "3 min ahead of the centre's" in clocks.centre.objection(120)


def test_what_is_uncertain_is_not_refused():
    assert not Skew(130.0, 15.0).beyond(120)
    assert Skew(-136.0, 15.0).beyond(120)


def test_jumps():
    clocks = Clocks()
    jumps = Jumps(clocks.wall, clocks.mono, clocks.boot)

    def look():
        return jumps.look(clocks.wall, clocks.mono, clocks.boot)

    clocks.run(1)
    assert look() == (0, 0)
    clocks.sleep(8 * HOUR)
    assert look() == (0, pytest.approx(8 * HOUR))
    clocks.run(1)
    clocks.wall -= 7
    assert look() == (pytest.approx(-7), 0)
    for _ in range(1000):  # NTP slews: 500 ppm
        clocks.run(1)
        clocks.wall += 0.0005
        assert look() == (0, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 ms"),
        (0.0012, "1.2 ms"),
        (5.04, "5.0 s"),
        (121, "2 min"),
        (7140, "119 min"),
        (12000, "3 h 20 min"),
        (400_000, "4 days 15 h"),
    ],
)
def test_spelling(seconds, text):
    assert spell(seconds) == text
