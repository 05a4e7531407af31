from dataclasses import replace
from pathlib import Path

import pytest

from redirect.compare import compare
from redirect.desired import Capture, Desired, Opening, Recognise, Rest, Skip
from redirect.kernel import Kernel
from redirect.plan import plan
from redirect.render import render
from tests.redirect.traffic import nft

DESIRED = Desired(
    (
        Capture("shop/web", Recognise(uid=1001), 15101, (("10.0.0.1", 80), ("fd00::1", 80)), shares_address=True),
        Capture(
            "shop/v4",
            Recognise(address="10.0.0.3"),
            15103,
            (("10.0.0.3", 80),),
            skip=Skip((53, 80), ("10.0.0.0/8", "11.0.0.0/8", "255.0.0.0/8", "fd00::/16"), (990,)),
            opening=Opening((80,), (81,), ("0.0.0.0/1",), (0,)),
            rest=Rest.BLOCK,
        ),
        Capture("shop/v6", Recognise(address="fd00::3"), 15104),
        Capture("shop/rest", Recognise(everything=True), 15105),
    ),
    frozenset({("10.0.0.1", 80), ("fd00::1", 80)}),
    capture_all=True,
    login_ports=frozenset({2222}),
    spared=frozenset({("10.0.0.9", 443), ("fd00::9", 443)}),
    until=3600.0,
)


@pytest.mark.parametrize("until", [3600.0, None])
def test_nft_makes_the_same_table_of_the_text(netns: str, kernel: Kernel, tmp_path: Path, until: float | None) -> None:
    """The text says what we do: nft's own compiler agrees, expression by expression."""
    desired = replace(DESIRED, until=until)
    file = tmp_path / "table"
    file.write_text(render(plan(desired)))
    nft(netns, "-f", str(file))
    assert compare(plan(desired), kernel.held()) == []


def test_long_sets_are_cut() -> None:
    text = render(plan(Desired(mesh=frozenset(("10.0.0.1", n) for n in range(1, 1501)))), shown=10)
    assert "... and 1490 more" in text
    assert text.count("10.0.0.1 . ") == 10


def test_cgroups_are_shown_by_number() -> None:
    text = render(plan(Desired((Capture("shop/web", Recognise(cgroup=(2, 4711)), 15101),))))
    assert "socket cgroupv2 level 2 vmap @by-cgroup-2" in text
    assert "4711 : goto from/shop/web," in text
