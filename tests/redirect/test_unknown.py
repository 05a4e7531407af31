"""Cgroups that came after the rules: held where they may be a workload's, left alone where they cannot be."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from redirect.cgroup import children, mount_point
from redirect.counts import Held
from redirect.desired import Capture, Desired, Parent, Recognise
from redirect.kernel import Kernel
from tests.redirect.conftest import Wire
from tests.redirect.traffic import MARKS, REFUSED, Server, located, nft, reached, reached_from_cgroup

FAR = ["10.77.0.9", "fd77::9"]
MESH = frozenset((address, 80) for address in FAR)


class Scene:
    """A slice with an enrolled unit and a stranger, whose rules stand; the far machine serves, the agent listens."""

    def __init__(self, wire: Wire, kernel: Kernel, slice_: str) -> None:
        self.wire, self.kernel, self.slice = wire, kernel, slice_
        os.mkdir(f"{slice_}/unit")
        os.mkdir(f"{slice_}/stranger")
        where = located(slice_)
        assert where is not None
        self.unit = Capture("shop/unit", Recognise(cgroup=located(f"{slice_}/unit")), 15101)
        self.desired = Desired((self.unit,), MESH, parents=(Parent(*where, frozenset({self.number("stranger")})),))
        kernel.apply(self.desired)

    def number(self, name: str) -> int:
        return os.stat(f"{self.slice}/{name}").st_ino

    def reached(self, name: str, address: str, port: int = 80) -> str:
        return reached_from_cgroup(self.wire.node, f"{self.slice}/{name}".rstrip("/"), address, port)

    @contextmanager
    def restarted(self) -> Iterator[None]:
        os.rmdir(f"{self.slice}/unit")
        os.mkdir(f"{self.slice}/unit")
        yield

    def remove(self) -> None:
        for folder, _, _ in os.walk(self.slice, topdown=False):
            if folder != self.slice:
                os.rmdir(folder)


@pytest.fixture
def scene(wire: Wire, kernel: Kernel, cgroup: str) -> Iterator[Scene]:
    with ExitStack() as stack:
        for address in ("0.0.0.0", "::"):
            for port in (80, 81):
                stack.enter_context(Server(wire.far, "far", address, port))
        for address in ("127.0.0.1", "::1"):
            stack.enter_context(Server(wire.node, "unit", address, 15101, MARKS.agent))
        made = Scene(wire, kernel, cgroup)
        try:
            yield made
        finally:
            made.remove()


@contextmanager
def resolver(wire: Wire) -> Iterator[None]:
    with (
        Server(wire.node, "resolver", "127.0.0.1", 15000, MARKS.agent),
        Server(wire.node, "resolver", "::1", 15000, MARKS.agent),
    ):
        yield


@pytest.mark.parametrize("address", FAR)
def test_a_restarted_unit_is_held(scene: Scene, address: str) -> None:
    assert scene.reached("unit", address) == "unit"
    with scene.restarted():
        assert scene.reached("unit", address) == REFUSED  # nobody resolves: refused at once, and not sent in clear
        with resolver(scene.wire):
            assert scene.reached("unit", address) == "resolver"
            assert scene.reached("unit", address, 81) == "far"
        assert scene.kernel.counters().held == Held(asked=2)


@pytest.mark.parametrize("address", FAR)
def test_below_an_unknown_cgroup_all_is_unknown(scene: Scene, address: str) -> None:
    with scene.restarted(), resolver(scene.wire):
        os.mkdir(f"{scene.slice}/unit/worker")
        assert scene.reached("unit/worker", address) == "resolver"


@pytest.mark.parametrize("address", FAR)
def test_who_is_known_or_sits_elsewhere_is_left_alone(scene: Scene, address: str) -> None:
    with resolver(scene.wire):
        os.mkdir(f"{scene.slice}/stranger/inside")
        for name in ("stranger", "stranger/inside", ""):
            assert scene.reached(name, address) == "far"
        assert reached(scene.wire.node, address, 80) == "far"


def test_an_unknown_child_is_not_taken_for_its_parent(scene: Scene) -> None:
    """The slice is a workload itself; who is new below it may be another."""
    whole = Capture("shop/whole", Recognise(cgroup=located(scene.slice)), 15102)
    scene.kernel.apply(replace(scene.desired, captures=(scene.unit, whole)))
    with resolver(scene.wire), Server(scene.wire.node, "whole", "127.0.0.1", 15102, MARKS.agent), scene.restarted():
        assert scene.reached("stranger", FAR[0]) == "whole"
        assert scene.reached("unit", FAR[0]) == "resolver"


def test_below_the_root_no_parent_is_asked_for(wire: Wire, kernel: Kernel, cgroup: str) -> None:
    with Server(wire.far, "far", "0.0.0.0", 80), resolver(wire):
        kernel.apply(Desired((), MESH, parents=(Parent(0, 1, frozenset({1})),)))
        assert reached_from_cgroup(wire.node, cgroup, FAR[0], 80) == "resolver"
        root = children("", mount_point() or "")
        assert root is not None
        kernel.apply(Desired((), MESH, parents=(Parent(0, 1, frozenset(root[1].values())),)))
        assert reached_from_cgroup(wire.node, cgroup, FAR[0], 80) == "far"
        assert reached(wire.node, FAR[0], 80) == "far"  # the root's own programs


def test_strangers_change_elements_only(scene: Scene) -> None:
    (parent,) = scene.desired.parents
    handles = nft(scene.wire.node, "-a", "list", "chain", "inet", "culvert", "out")
    for known in (frozenset({1, 2}), frozenset({2, 3}), frozenset[int]()):
        desired = replace(scene.desired, parents=(replace(parent, children=known),))
        scene.kernel.apply(desired)
        assert scene.kernel.differences(desired) == []
        assert nft(scene.wire.node, "-a", "list", "chain", "inet", "culvert", "out") == handles


def test_the_port_is_for_redirected_connections_only(scene: Scene) -> None:
    with resolver(scene.wire):
        assert reached(scene.wire.node, "127.0.0.1", 15000) == REFUSED
        assert reached(scene.wire.node, "::1", 15000) == REFUSED
