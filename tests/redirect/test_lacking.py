"""A kernel that cannot tell cgroups apart does all the rest. Ours can; but no kernel looks 300 levels deep, and it says
so much as an old one does."""

from dataclasses import replace

import pytest

from redirect.desired import Capture, Desired, Parent, Recognise
from redirect.kernel import Kernel
from tests.redirect.conftest import Wire
from tests.redirect.traffic import MARKS, Server, nft, reached

USER = Capture("shop/user", Recognise(uid=1001), 15101)
UNIT = Capture("shop/unit", Recognise(cgroup=(300, 7)), 15102, (("10.77.0.1", 82),), shares_address=True)
DESIRED = Desired((USER, UNIT), frozenset({("10.77.0.9", 80)}), parents=(Parent(299, 6, frozenset({8})),))


@pytest.mark.parametrize("own", [False, True])
def test_the_rest_works(wire: Wire, own: bool) -> None:
    kernel = Kernel(wire.node, own=own)
    try:
        said = kernel.apply(DESIRED)
        assert "socket cgroupv2" in said
        assert "cannot be told apart by cgroup on this kernel" in said
        assert kernel.differences(DESIRED) == []
        assert kernel.owned == own
        with (
            Server(wire.far, "far", "10.77.0.9", 80),
            Server(wire.node, "captured", "127.0.0.1", 15101, MARKS.agent),
            Server(wire.node, "inbound", "0.0.0.0", 15006, MARKS.agent),
        ):
            assert reached(wire.node, "10.77.0.9", 80, uid=1001) == "captured"
            assert reached(wire.far, "10.77.0.1", 82) == "inbound"  # the unit is guarded
        # Asked once: later changes are made in place.
        handles = nft(wire.node, "-a", "list", "chain", "inet", "culvert", "out")
        more = replace(DESIRED, mesh=frozenset({("10.77.0.9", 80), ("10.77.0.9", 81)}))
        assert kernel.apply(more) == said
        assert nft(wire.node, "-a", "list", "chain", "inet", "culvert", "out") == handles
        assert kernel.apply(replace(more, captures=(USER,))) == ""
    finally:
        kernel.close()
