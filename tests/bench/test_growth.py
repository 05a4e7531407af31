import pytest

from bench.growth import Bound, Reading, grown, left_over


def reading(at: float, *, node: str = "node-a", **fields: float) -> Reading:
    usual = {"memory": 100.0, "descriptors": 60, "connections": 40, "tunnels": 2, "streams": 40}
    return Reading(node, at, **(usual | fields))  # type: ignore[arg-type]  # whole numbers where counts are


def test_flat_is_fine_whatever_the_single_readings_do() -> None:
    assert grown([reading(n, memory=100 + n % 3, connections=40 + 300 * (n % 7 > 2)) for n in range(60)]) == []


def test_what_grows_in_the_warm_up_is_not_judged() -> None:
    assert grown([reading(n, memory=min(50 + 10 * n, 140)) for n in range(60)]) == []


@pytest.mark.parametrize(
    ("field", "rate"), [("memory", 0.5), ("descriptors", 2), ("connections", 2), ("tunnels", 0.3), ("streams", 2)]
)
def test_a_leak_is_named_with_its_node(field: str, rate: float) -> None:
    fine = [reading(n, node="node-b") for n in range(40)]
    leaking = [reading(n, **{field: 50 + int(rate * n)}) for n in range(40)]
    (fault,) = grown([*fine, *leaking])
    assert fault.startswith(f"node-a: {field} grew in the run from ")


def test_too_few_readings_prove_nothing() -> None:
    (fault,) = grown([reading(n) for n in range(5)])
    assert "too few" in fault


def test_the_greater_allowance_holds() -> None:
    bounds = [Bound("memory", 0.1, 4)]
    assert left_over([reading(0, memory=100)], [reading(9, memory=110)], bounds) == []
    assert left_over([reading(0, memory=10)], [reading(9, memory=14)], bounds) == []
    assert left_over([reading(0, memory=10)], [reading(9, memory=14.5)], bounds) == [
        "node-a: memory grew at rest from 10 to 14.5; at most 14 is allowed"
    ]


def test_a_connection_left_over_is_a_leak() -> None:
    before, after = reading(0, connections=0, streams=0), reading(9, connections=1, streams=0)
    (fault,) = left_over([before], [after])
    assert "connections grew at rest from 0 to 1" in fault
