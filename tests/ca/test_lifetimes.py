"""What ends when, and who is told."""

from datetime import UTC, datetime, timedelta

import pytest

from ca.lifetimes import NAMED, Lifetime, Standing, Thresholds, findings, overview, renewal_time

NOW = datetime(2030, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(("root_left", "due"), [(3650, 182.5), (366, 182.5), (365, None), (100, None)])
def test_an_issuing_certificate_is_due_at_half_its_life_unless_the_root_ends_first(
    root_left: int, due: float | None
) -> None:
    expected = None if due is None else NOW + due * DAY
    assert renewal_time(NOW, NOW + 365 * DAY, NOW + root_left * DAY) == expected


@pytest.mark.parametrize(
    ("what", "life", "left", "said"),
    [
        ("root", 3650, 365, ""),
        ("root", 3650, 364, "root it ends at 2031-04-30 00:00 UTC: nothing in the mesh is trusted after that"),
        ("issuing", 365, 92, ""),
        ("issuing", 365, 91, "issuing certificate it ends at 2030-07-31 00:00 UTC: it should have been replaced"),
        ("node", 8, 2, ""),
        ("node", 8, 1, "certificate of node it ends at 2030-05-02 00:00 UTC: it was not renewed"),
        ("node", 8, -1, "certificate of node it ended at 2030-04-30 00:00 UTC"),
        ("workload", 1, 1, ""),
        ("workload", 1, 0, "certificate of it ended at 2030-05-01 00:00 UTC: it was not renewed"),
    ],
)
def test_who_should_have_been_renewed_is_named(what: str, life: int, left: int, said: str) -> None:
    found = findings([Lifetime(what, "it", NOW + left * DAY, life * DAY)], NOW)
    assert [f.text.startswith(said) for f in found] == [True] * bool(said)


def test_the_thresholds_can_be_others() -> None:
    node, root = Lifetime("node", "n", NOW + 4 * DAY, 8 * DAY), Lifetime("root", "r", NOW + 4 * DAY, 8 * DAY)
    assert findings([node], NOW) == []
    assert [f.title for f in findings([node, root], NOW, Thresholds(0.6, 0.4))] == ["n"]
    assert [f.title for f in findings([node, root], NOW, Thresholds(0.4, 0.6))] == ["r"]


def test_the_nearest_end_comes_first() -> None:
    found = [
        Lifetime("node", "late", NOW + DAY, 8 * DAY),
        Lifetime("node", "later", NOW, 8 * DAY),
    ]
    assert [f.title for f in findings(found, NOW)] == ["later", "late"]


def test_a_thousand_of_a_kind_are_one_finding_whose_key_stays() -> None:
    nodes = [Lifetime("node", f"n{i}", NOW + i * timedelta(minutes=1), 8 * DAY) for i in range(1, 1001)]
    root = Lifetime("root", "r", NOW + DAY, 3650 * DAY)
    many, one = findings([root, *nodes], NOW)
    assert many.text.startswith("1000 certificates of nodes end soon, the first: certificate of node n1 ends at")
    assert one.title == "r"
    assert findings(nodes[5:], NOW)[0].key == many.key
    assert len(findings(nodes[:NAMED], NOW)) == NAMED


def test_an_overview_counts() -> None:
    root, issuing = Lifetime("root", "r", NOW + 3000 * DAY, 3650 * DAY), Lifetime("issuing", "i", NOW + DAY, DAY)
    nodes = [Lifetime("node", f"n{left}", NOW + left * DAY, 8 * DAY) for left in (7, 0, 1, 6)]
    it = overview([root, issuing, *nodes], NOW)
    assert it.signing == (root, issuing)
    assert {w: f.title for w, f in it.first.items()} == {"root": "r", "issuing": "i", "node": "n0"}
    assert [it.counts["node", s] for s in Standing] == [2, 1, 1]
    assert [f.title for f in it.findings] == ["n0", "n1"]
