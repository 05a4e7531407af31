"""The switch across restarts, boots and full disks."""

from pathlib import Path

import pytest

from agent.node.files import StateError
from agent.node.state import Attempt, State
from agent.node.switch import Switch, boot_id, boot_seconds


@pytest.fixture
def state(tmp_path: Path) -> State:
    return State(tmp_path)


def test_a_trial_is_on_here_and_off_on_disk(state: State) -> None:
    switch = Switch(state)
    assert not switch.off
    switch.turn(True)
    switch.attempt(60)
    assert not switch.off
    assert 59 < switch.left <= 60
    assert state.capture_off()


def test_a_restart_goes_on_with_it(state: State) -> None:
    Switch(state).attempt(60)
    again = Switch(state)
    assert (again.off, again.left > 0) == (False, True)


@pytest.mark.parametrize("boot", ["", "another"])
def test_it_is_over_after_its_time_and_after_a_boot(state: State, boot: str) -> None:
    state.set_capture_off(True)
    state.save_attempt(Attempt(boot or boot_id(), boot_seconds() + (60 if boot else -1)))
    switch = Switch(state)
    assert (switch.off, switch.until) == (True, None)


@pytest.mark.parametrize("off", [True, False])
def test_to_switch_ends_it_for_good(state: State, off: bool) -> None:
    switch = Switch(state)
    switch.attempt(60)
    switch.turn(off)
    assert (switch.off, switch.until) == (off, None)
    assert state.attempt() is None
    assert (Switch(state).off, Switch(state).until) == (off, None)


def test_a_forgotten_file_of_a_confirmed_trial_does_nothing(state: State) -> None:
    Switch(state).attempt(60)
    state.set_capture_off(False)  # and then the power went
    assert (Switch(state).off, Switch(state).until) == (False, None)


def test_without_a_disk_there_is_no_trial(state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise StateError("no space left")

    switch = Switch(state)
    switch.turn(True)
    monkeypatch.setattr(state, "save_attempt", full)
    with pytest.raises(StateError):
        switch.attempt(60)
    assert (switch.off, switch.until) == (True, None)
    switch.end()  # and ending one takes none


async def test_it_runs_out(state: State) -> None:
    switch = Switch(state)
    switch.attempt(0.05)
    await switch.over()
    assert switch.left == 0
    switch.end()
    assert (switch.off, state.attempt()) == (True, None)
