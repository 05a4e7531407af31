"""One table, written row by row, read as a whole: here by tallies in one process, and by real processes."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.tally import PLACES, Tally, clear, make, number


@contextmanager
def table(rows: int) -> Iterator[int]:
    fd = make(rows)
    try:
        yield fd
    finally:
        os.close(fd)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(1, 6).map(lambda n: n * PLACES + 1), st.integers(0, 9)), max_size=40
    )
)
def test_each_sees_the_sum_of_the_others(events: list[tuple[int, int, int]]) -> None:
    """Accounts whose numbers fall on one place are told apart."""
    with table(3) as fd:
        tallies = [Tally(os.dup(fd), row, 3) for row in range(3)]
        held = [dict[int, int]() for _ in range(3)]
        for row, account, amount in events:
            tallies[row].put(account, amount, 2 * amount)
            held[row][account] = amount
            for seer in range(3):
                others = sum(held[r].get(account, 0) for r in range(3) if r != seer)
                assert tallies[seer].others(account) == (others, 2 * others)


def test_a_full_row_begins_anew() -> None:
    with table(2) as fd:
        one, two = (Tally(os.dup(fd), row, 2) for row in (0, 1))
        for account in range(1, PLACES + 1):
            one.put(account, 1, 1)
        assert two.others(PLACES) == (1, 1)
        one.put(PLACES + 1, 7, 8)
        assert two.others(PLACES + 1) == (7, 8)
        assert two.others(PLACES) == (0, 0)
        one.put(PLACES, 2, 3)
        assert two.others(PLACES) == (2, 3)


def test_names_have_numbers_that_every_process_agrees_on() -> None:
    assert number("outbound shop/web") == number("outbound shop/web") != number("inbound shop/web")
    code = "import sys; from agent.tally import number; print(number(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", code, "shop/web"], capture_output=True, text=True, check=True)
    assert int(done.stdout) == number("shop/web")


def test_between_processes() -> None:
    code = (
        "import sys\n"
        "from agent.tally import Tally\n"
        "tally = Tally(int(sys.argv[1]), 1, 2)\n"
        "tally.put(42, 5, 6)\n"
        "print(tally.others(42))\n"
    )
    with table(2) as fd:
        mine = Tally(os.dup(fd), 0, 2)
        mine.put(42, 3, 4)
        command = [sys.executable, "-c", code, str(fd)]
        done = subprocess.run(command, pass_fds=[fd], capture_output=True, text=True, check=True)
        assert done.stdout == "(3, 4)\n"
        assert mine.others(42) == (5, 6)
        clear(fd, 1)  # it has died
        assert mine.others(42) == (0, 0)
        other = Tally(os.dup(fd), 1, 2)  # and another has its place
        other.put(42, 1, 1)
        assert mine.others(42) == (1, 1)
        Tally(os.dup(fd), 1, 2)
        assert mine.others(42) == (0, 0)
