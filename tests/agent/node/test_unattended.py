from agent.node.unattended import Told, untold
from redirect.counts import Counts


def counts(**passed: int) -> dict[str, Counts]:
    return {f"shop/{name}": Counts(passed=count) for name, count in passed.items()}


def test_told_once():
    fresh, told = untold(Told(), "b1", counts(web=3, db=0))
    assert (fresh, told) == ({"shop/web": 3}, Told("b1", {"shop/web": 3}))
    assert untold(told, "b1", counts(web=3)) == ({}, told)
    assert untold(told, "b1", counts(web=5, db=1))[0] == {"shop/web": 2, "shop/db": 1}


def test_a_new_boot_or_a_new_table_counts_from_zero():
    told = Told("b1", {"shop/web": 100})
    assert untold(told, "b2", counts(web=150))[0] == {"shop/web": 150}
    assert untold(told, "b1", counts(web=4))[0] == {"shop/web": 4}
    assert untold(told, "b1", {}) == ({}, Told("b1", {}))
