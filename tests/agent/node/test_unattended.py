from agent.node.unattended import Told, untold
from redirect.counts import Counters, Counts, Unnamed


def counts(units: int = 0, containers: int = 0, **passed: int) -> Counters:
    named = {f"shop/{name}": Counts(passed=count) for name, count in passed.items()}
    return Counters(named, unnamed=Unnamed(units, containers))


def told_of(told: Told, boot: str, found: Counters) -> tuple[dict[str, int], Told]:
    """Where all rules stay as they were."""
    return untold(told, boot, found, found)


def test_told_once():
    fresh, told = told_of(Told(), "b1", counts(web=3, db=0))
    assert (fresh, told) == ({"shop/web": 3}, Told("b1", {"shop/web": 3}))
    assert told_of(told, "b1", counts(web=3)) == ({}, told)
    assert told_of(told, "b1", counts(web=5, db=1))[0] == {"shop/web": 2, "shop/db": 1}


def test_a_new_boot_or_a_new_table_counts_from_zero():
    told = Told("b1", {"shop/web": 100})
    assert told_of(told, "b2", counts(web=150))[0] == {"shop/web": 150}
    assert told_of(told, "b1", counts(web=4))[0] == {"shop/web": 4}
    assert told_of(told, "b1", counts(web=0)) == ({}, Told("b1", {}))


def test_so_is_what_nobody_could_name():
    fresh, told = told_of(Told(), "b1", counts(units=2, containers=5))
    assert fresh == told.passed == {"new units": 2, "new containers": 5}
    assert told_of(told, "b1", counts(units=2, containers=6))[0] == {"new containers": 1}


def test_a_count_that_goes_with_its_rules_is_told_of_before():
    """The mesh changed while the agent was away."""
    fresh, told = untold(Told("b1", {"shop/web": 1}), "b1", counts(web=3, units=4), counts())
    assert (fresh, told) == ({"shop/web": 2, "new units": 4}, Told("b1", {}))


def test_a_namespace_that_is_entered_later_is_told_of_then():
    told = Told("b1", {"shop/web": 3, "shop/box": 5})
    fresh, told = untold(told, "b1", counts(web=4), counts(web=4))
    assert (fresh, told.passed) == ({"shop/web": 1}, {"shop/web": 4, "shop/box": 5})
    fresh, told = untold(told, "b1", counts(box=6), counts(web=4, box=6))
    assert (fresh, told.passed) == ({"shop/box": 1}, {"shop/web": 4, "shop/box": 6})


def test_a_namespace_that_is_new_counts_from_zero():
    told = untold(Told("b1", {"shop/box": 5}), "b1", counts(), counts(box=0))[1]
    assert told_of(told, "b1", counts(box=7))[0] == {"shop/box": 7}
