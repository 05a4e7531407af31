"""Workloads that fail open: captured while the agent is there, passed and counted from the moment it is not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from redirect.counts import Unnamed
from redirect.desired import Capture, Desired, Parent, Recognise
from redirect.kernel import Kernel
from redirect.namespace import in_namespace
from redirect.netlink import CaptureError
from tests.redirect.conftest import Wire
from tests.redirect.traffic import MARKS, REFUSED, Server, located, nft, reached, reached_from_cgroup

FAR = ["10.77.0.9", "fd77::9"]
HERE = ["10.77.0.1", "fd77::1"]
OPEN = Capture(
    "shop/open",
    Recognise(uid=1001),
    15101,
    tuple((a, p) for a in HERE for p in (82, 83)),
    shares_address=True,
    open=True,
    open_ports=(82,),
)
CLOSED = Capture("shop/closed", Recognise(uid=1002), 15102)
MESH = frozenset((address, 80) for address in FAR)
DESIRED = Desired((OPEN, CLOSED), MESH)


@pytest.fixture
def served(wire: Wire) -> Iterator[Wire]:
    """Real servers on both machines; no agent."""
    with ExitStack() as stack:
        for address in ("0.0.0.0", "::"):
            for port in (80, 81):
                stack.enter_context(Server(wire.far, "far", address, port))
            for port in (82, 83):
                stack.enter_context(Server(wire.node, "application", address, port))
        yield wire


@pytest.fixture
def agent(wire: Wire) -> Iterator[ExitStack]:
    """The agent's listeners, until it is closed."""
    with ExitStack() as stack:
        for address in ("127.0.0.1", "::1"):
            for port in (15101, 15102):
                stack.enter_context(Server(wire.node, f"captured {port}", address, port, MARKS.agent))
        for address in ("0.0.0.0", "::"):
            stack.enter_context(Server(wire.node, "inbound", address, 15006, MARKS.agent))
        yield stack


@pytest.mark.parametrize("address", FAR)
def test_out_of_it(served: Wire, kernel: Kernel, agent: ExitStack, address: str) -> None:
    kernel.apply(DESIRED)
    kernel.appear(MARKS)
    for uid, port in ((1001, 15101), (1002, 15102)):
        assert reached(served.node, address, 80, uid=uid) == f"captured {port}"
    kernel.vanish()
    agent.close()
    assert reached(served.node, address, 80, uid=1001) == "far"
    assert reached(served.node, address, 80, uid=1002) == REFUSED
    assert reached(served.node, address, 81, uid=1001) == "far"  # goes past us anyhow
    counts = kernel.counters().workloads
    assert (counts["shop/open"].captured, counts["shop/open"].passed, counts["shop/open"].bypassed) == (1, 1, 1)
    assert (counts["shop/closed"].captured, counts["shop/closed"].passed) == (2, 0)
    # Whatever changes in the table, it goes on counting from there.
    kernel.apply(replace(DESIRED, captures=(OPEN,)), afresh=True)
    assert kernel.counters().workloads["shop/open"].passed == 1


@pytest.mark.parametrize("address", HERE)
def test_into_it_where_no_policy_would_refuse(served: Wire, kernel: Kernel, agent: ExitStack, address: str) -> None:
    kernel.apply(DESIRED)
    kernel.appear(MARKS)
    for place in (served.node, served.far):
        assert [reached(place, address, port) for port in (82, 83)] == ["inbound", "inbound"]
    kernel.vanish()
    agent.close()
    for place in (served.node, served.far):
        assert [reached(place, address, port) for port in (82, 83)] == ["application", REFUSED]
    assert kernel.counters().workloads["shop/open"].passed == 2


def test_all_is_captured_when_all_is_to_be(served: Wire, kernel: Kernel, agent: ExitStack) -> None:
    kernel.apply(replace(DESIRED, capture_all=True))
    kernel.appear(MARKS)
    assert reached(served.node, FAR[0], 81, uid=1001) == "captured 15101"
    kernel.vanish()
    assert reached(served.node, FAR[0], 81, uid=1001) == "far"
    assert kernel.counters().workloads["shop/open"].passed == 1


def test_it_ends_with_the_process_however_that_ends(served: Wire, kernel: Kernel, agent: ExitStack) -> None:
    kernel.apply(DESIRED)
    code = (
        "from redirect.desired import Marks\nfrom redirect.kernel import Kernel\n"
        "k = Kernel(); k.appear(Marks()); print('there', flush=True); input()"
    )
    argv = [sys.executable, "-c", code]
    child = in_namespace(
        served.node, lambda: subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    )
    assert child.stdin
    assert child.stdout
    with child, child.stdin, child.stdout:
        assert child.stdout.readline() == "there\n"
        assert reached(served.node, FAR[0], 80, uid=1001) == "captured 15101"
        # It is the agent's: nobody takes it away.
        with pytest.raises(AssertionError, match="not permitted"):
            nft(served.node, "delete", "table", "inet", "culvert-presence")
        with pytest.raises(CaptureError, match="tie rules to the agent's life"):
            kernel.appear(MARKS)
        child.send_signal(signal.SIGKILL)
        child.wait(5)
        assert reached(served.node, FAR[0], 80, uid=1001) == "far"
        assert reached(served.node, FAR[0], 80, uid=1002) == "captured 15102"
    kernel.appear(MARKS)
    assert reached(served.node, FAR[0], 80, uid=1001) == "captured 15101"


def test_people_can_read_it(wire: Wire, kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    assert kernel.differences(DESIRED) == []
    kernel.appear(MARKS)
    shown = nft(wire.node, "list", "table", "inet", "culvert")
    assert "ct label 117 counter packets 0 bytes 0 redirect to :15101" in shown
    assert "ct label set 117" in nft(wire.node, "list", "table", "inet", "culvert-presence")


UNIT = Capture("shop/unit", Recognise(cgroup=(2, 5)), 15103, open=True)
OTHER = Capture("shop/other", Recognise(cgroup=(2, 6)), 15104)
NEW = (Parent(0, 1, frozenset({1})),)
"""Below the root all cgroups are new."""


@pytest.mark.parametrize("closed", [True, False])
def test_an_unknown_cgroup_passes_only_if_all_may(served: Wire, kernel: Kernel, cgroup: str, closed: bool) -> None:
    """It could be of any of them: also where its user is that of an open one, whose unit may be new, because the new
    cgroup of a closed one may have that user as well, and goes first."""
    units = (UNIT, OTHER) if closed else (UNIT,)
    kernel.apply(replace(DESIRED, captures=(*DESIRED.captures, *units), parents=NEW))
    for uid in (0, 1001):
        assert reached_from_cgroup(served.node, cgroup, FAR[0], 80, uid) == (REFUSED if closed else "far")


@pytest.mark.parametrize("address", FAR)
def test_an_unknown_cgroup_that_passes_is_counted(served: Wire, kernel: Kernel, cgroup: str, address: str) -> None:
    desired = replace(DESIRED, captures=(*DESIRED.captures, UNIT), parents=NEW)
    kernel.apply(desired)
    assert kernel.differences(desired) == []
    assert reached_from_cgroup(served.node, cgroup, address, 80) == "far"
    assert reached_from_cgroup(served.node, cgroup, address, 81) == "far"  # goes past us anyhow
    assert reached(served.node, address, 80) == "far"  # the root's own programs are no unknown cgroup's
    assert kernel.counters().unnamed == Unnamed(units=1)
    # Whom its user makes a workload's is counted there, or refused.
    assert reached_from_cgroup(served.node, cgroup, address, 80, 1001) == "far"
    assert reached_from_cgroup(served.node, cgroup, address, 80, 1002) == REFUSED
    assert kernel.counters().unnamed == Unnamed(units=1)
    assert kernel.counters().workloads["shop/open"].passed == 1
    kernel.apply(replace(desired, mesh=MESH | {(address, 79)}), afresh=True)
    assert kernel.counters().unnamed == Unnamed(units=1)
    with (
        Server(served.node, "resolver", "127.0.0.1", 15000, MARKS.agent),
        Server(served.node, "resolver", "::1", 15000, MARKS.agent),
    ):
        kernel.appear(MARKS)
        assert reached_from_cgroup(served.node, cgroup, address, 80) == "resolver"
    assert kernel.counters().unnamed == Unnamed(units=1)


def test_on_several_levels_it_is_counted_once(served: Wire, kernel: Kernel, cgroup: str) -> None:
    where = located(cgroup)
    assert where is not None
    os.mkdir(f"{cgroup}/new")
    try:
        parents = (*NEW, Parent(*where), Parent(0, 1))
        kernel.apply(replace(DESIRED, captures=(UNIT,), parents=parents))
        assert reached_from_cgroup(served.node, f"{cgroup}/new", FAR[0], 80) == "far"
        assert kernel.counters().unnamed == Unnamed(units=1)
    finally:
        os.rmdir(f"{cgroup}/new")
