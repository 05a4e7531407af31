from dataclasses import replace

from hypothesis import HealthCheck, given, settings

from redirect.desired import Capture, Desired, Recognise
from redirect.kernel import Kernel
from redirect.plan import plan
from redirect.transition import transition
from tests.redirect.desires import desired as desires
from tests.redirect.traffic import nft

WEB = Capture("shop/web", Recognise(uid=1001), 15101)
DESIRED = Desired((WEB,), frozenset({("10.0.0.1", 80)}))


def _steps(old: Desired | None, new: Desired) -> list[list[str]]:
    return [[m.about for m in step] for step in transition(plan(old) if old else None, plan(new))]


def test_nothing_to_do() -> None:
    assert _steps(DESIRED, DESIRED) == []


def test_without_a_table_one_transaction_makes_it() -> None:
    (only,) = _steps(None, DESIRED)
    assert only[:3] == ["table culvert", "deletion of table culvert", "table culvert"]


def test_elements_alone_are_one_transaction() -> None:
    other = replace(DESIRED, mesh=frozenset({("10.0.0.2", 80), ("10.0.0.3", 80)}))
    assert _steps(DESIRED, other) == [["elements of mesh4", "removal of elements of mesh4"]]


def test_a_chain_is_complete_before_anything_leads_there_and_goes_when_nothing_does() -> None:
    db = Capture("shop/db", Recognise(uid=1002), 15102)
    first, second = _steps(DESIRED, replace(DESIRED, captures=(WEB, db)))
    assert {"chain from/shop/db", "chain unmeshed/shop/db"} <= set(first)
    assert sorted(second) == ["elements of by-uid", "elements of unmeshed-by-uid"]
    first, second = _steps(replace(DESIRED, captures=(WEB, db)), DESIRED)
    assert sorted(first) == ["removal of elements of by-uid", "removal of elements of unmeshed-by-uid"]
    assert second[:2] == ["removal of elements of kept-ports", "removal of elements of identity-ports"]
    for chain in ("from/shop/db", "unmeshed/shop/db"):
        assert second.index(f"flush of chain {chain}") < second.index(f"deletion of chain {chain}")


def test_a_restarted_unit_changes_one_verdict() -> None:
    before, after = (replace(DESIRED, captures=(replace(WEB, recognise=Recognise(cgroup=(1, n))),)) for n in (5, 6))
    maps = "by-cgroup-1", "unmeshed-by-cgroup-1"
    ((*steps,),) = _steps(before, after)
    assert sorted(steps) == sorted(f"{verb} of {name}" for name in maps for verb in ("elements", "removal of elements"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(old=desires(), new=desires())
def test_from_anywhere_to_anywhere(kernel: Kernel, old: Desired, new: Desired) -> None:
    kernel.apply(old)
    assert kernel.differences(old) == []
    kernel.apply(new)
    assert kernel.differences(new) == []


def test_what_strangers_tied_together_is_replaced(netns: str, kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    nft(netns, "add chain inet culvert a")
    nft(netns, "add chain inet culvert b")
    nft(netns, "add map inet culvert m { type uid : verdict; elements = { 5 : goto b }; }")
    nft(netns, "add rule inet culvert a meta skuid vmap @m")
    nft(netns, "add rule inet culvert from/shop/web goto a")
    kernel.apply(DESIRED, afresh=True)
    assert kernel.differences(DESIRED) == []


def test_a_chain_at_another_hook_is_replaced(netns: str, kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    nft(netns, "delete chain inet culvert guard")
    nft(netns, "add chain inet culvert guard { type filter hook output priority 5; policy drop; }")
    assert kernel.differences(DESIRED)[0] == (
        "chain guard is: type filter hook output priority 5; policy drop; "
        "should be: type filter hook input priority filter; policy accept;"
    )
    kernel.apply(DESIRED, afresh=True)
    assert kernel.differences(DESIRED) == []
