"""What is never captured, and a table that ends by itself."""

import time
from dataclasses import replace

import pytest

from redirect.desired import Capture, Desired, Recognise
from redirect.kernel import Kernel
from redirect.ruleset import Set
from tests.redirect.conftest import Wire
from tests.redirect.traffic import MARKS, Server, nft, reached

WEB = Capture("shop/web", Recognise(uid=1001), 15101, (("10.77.0.1", 80), ("10.77.0.1", 2222), ("fd77::1", 2222)), True)
DESIRED = Desired((WEB,), frozenset({("10.77.0.9", 80), ("10.77.0.9", 2222), ("fd77::9", 80)}), capture_all=True)


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _seen(wire: Wire, address: str, port: int, here: bool) -> str:
    """Whom uid 1001 of the node reaches, or somebody far away does."""
    return reached(wire.node if here else wire.far, address, port, uid=1001 if here else 0)


@pytest.mark.parametrize("address", ["10.77.0.1", "127.0.0.1", "fd77::1"])
def test_login_ports_of_this_machine_are_left_alone(wire: Wire, kernel: Kernel, address: str) -> None:
    any_ = "::" if ":" in address else "0.0.0.0"
    with Server(wire.node, "sshd", any_, 2222), Server(wire.node, "agent", any_, 15006, MARKS.agent):
        for here in (True,) if address == "127.0.0.1" else (True, False):
            kernel.apply(DESIRED)
            assert _seen(wire, address, 2222, here) != "sshd"
            kernel.apply(replace(DESIRED, login_ports=frozenset({2222})))
            assert _seen(wire, address, 2222, here) == "sshd"


def test_the_same_port_elsewhere_is_captured(wire: Wire, kernel: Kernel) -> None:
    kernel.apply(replace(DESIRED, login_ports=frozenset({2222})))
    with Server(wire.far, "clear", "10.77.0.9", 2222), Server(wire.node, "agent", "127.0.0.1", 15101, MARKS.agent):
        assert _seen(wire, "10.77.0.9", 2222, True) == "agent"


@pytest.mark.parametrize("address", ["10.77.0.9", "fd77::9"])
def test_the_centre_is_left_alone(wire: Wire, kernel: Kernel, address: str) -> None:
    loopback = "::1" if ":" in address else "127.0.0.1"
    with Server(wire.far, "centre", address, 80), Server(wire.node, "agent", loopback, 15101, MARKS.agent):
        kernel.apply(DESIRED)
        assert _seen(wire, address, 80, True) == "agent"
        kernel.apply(replace(DESIRED, spared=frozenset({(address, 80)})))
        assert _seen(wire, address, 80, True) == "centre"


def test_a_trial_ends_by_itself_in_the_kernel(wire: Wire, kernel: Kernel) -> None:
    """Nobody of ours does anything at the end."""
    end = _clock() + 1.0
    with Server(wire.far, "clear", "10.77.0.9", 80), Server(wire.node, "agent", "127.0.0.1", 15101, MARKS.agent):
        kernel.apply(replace(DESIRED, until=end))
        assert _seen(wire, "10.77.0.9", 80, True) == "agent"
        while _clock() < end + 0.1:
            time.sleep(0.02)
        assert _seen(wire, "10.77.0.9", 80, True) == "clear"


def test_a_change_during_a_trial_does_not_prolong_it(wire: Wire, kernel: Kernel) -> None:
    end = _clock() + 5.0
    kernel.apply(replace(DESIRED, until=end))
    for afresh in (False, True):
        nft(wire.node, "flush", "ruleset") if afresh else None
        kernel.apply(replace(DESIRED, until=end, captures=(replace(WEB, port=15102 + afresh),)), afresh)
        longest = end - _clock()
        left = _left(kernel)
        assert left is not None
        assert 0 < left <= longest + 0.1  # the kernel counts in ticks


def test_a_table_that_is_put_there_when_the_trial_is_over_takes_nothing(wire: Wire, kernel: Kernel) -> None:
    kernel.apply(replace(DESIRED, until=_clock() - 1))
    with Server(wire.far, "clear", "10.77.0.9", 80):
        assert _seen(wire, "10.77.0.9", 80, True) == "clear"


def test_a_confirmed_trial_stays(wire: Wire, kernel: Kernel) -> None:
    end = _clock() + 1.0
    kernel.apply(replace(DESIRED, until=end))
    kernel.apply(DESIRED)
    assert _left(kernel) is None
    with Server(wire.node, "agent", "127.0.0.1", 15101, MARKS.agent):
        while _clock() < end + 0.1:
            assert _seen(wire, "10.77.0.9", 80, True) == "agent"
    assert kernel.differences(DESIRED) == []


def _left(kernel: Kernel) -> float | None:
    held = kernel.held()
    assert held is not None
    return next((s.seconds for s in held.sets if isinstance(s, Set) and s.name == "trial"), None)
