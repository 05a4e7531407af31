import select
from collections.abc import Iterator
from dataclasses import replace

import pytest

from redirect.desired import Capture, Desired, Recognise
from redirect.kernel import Kernel
from redirect.route_watch import RouteWatch
from redirect.watch import Watch
from tests.redirect.traffic import ip, nft

DESIRED = Desired((Capture("shop/web", Recognise(uid=1001), 15101),), frozenset({("10.0.0.1", 80)}))


@pytest.fixture
def watch(kernel: Kernel) -> Iterator[Watch]:
    kernel.apply(DESIRED)
    watch = kernel.watch()
    yield watch
    watch.close()


def _readable(watch: Watch | RouteWatch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


def test_a_flush_is_seen_and_healed(netns: str, kernel: Kernel, watch: Watch) -> None:
    assert not _readable(watch)
    nft(netns, "flush ruleset")
    assert _readable(watch)
    assert "table deleted" in watch.foreign()
    kernel.apply(DESIRED, afresh=True)
    assert kernel.differences(DESIRED) == []
    assert watch.foreign() == []


@pytest.mark.parametrize(
    ("change", "news"),
    [
        ("delete table inet culvert", "table deleted"),
        ("add rule inet culvert out accept", "rule added"),
        ("flush chain inet culvert out", "rule deleted"),
        ("add element inet culvert mesh4 { 10.0.0.2 . 80 }", "elements added"),
        ("delete element inet culvert mesh4 { 10.0.0.1 . 80 }", "elements deleted"),
        ("add chain inet culvert more", "chain added or changed"),
    ],
)
def test_changes_of_others_are_named(netns: str, watch: Watch, change: str, news: str) -> None:
    nft(netns, change)
    assert news in watch.foreign()
    assert watch.foreign() == []


def test_our_own_changes_and_other_tables_are_no_news(netns: str, kernel: Kernel, watch: Watch) -> None:
    kernel.apply(replace(DESIRED, mesh=frozenset({("10.0.0.2", 80)})))
    kernel.apply(DESIRED, afresh=True)
    nft(netns, "add table ip culvert")
    nft(netns, "add table inet other")
    nft(netns, "add set inet other mesh4 { type inet_service; }")
    assert watch.foreign() == []


@pytest.mark.parametrize("version", ["-4", "-6"])
@pytest.mark.parametrize("what", ["rule", "route"])
def test_routing_that_is_taken_away(netns: str, kernel: Kernel, version: str, what: str) -> None:
    kernel.apply(DESIRED)
    watch = kernel.watch_routes()
    try:
        table = str(DESIRED.marks.route_table)
        ip(netns, version, "route", "add", "local", "default", "dev", "lo", "table", "7777")
        ip(netns, version, "route", "flush", "table", "7777")  # somebody else's
        assert not watch.foreign()
        if what == "rule":
            ip(netns, version, "rule", "del", "priority", str(DESIRED.marks.rule_priority))
        else:
            ip(netns, version, "route", "flush", "table", table)
        assert _readable(watch)
        assert watch.foreign()
        (lost,) = kernel.reroute(DESIRED.marks)
        assert f"{'IPv4' if version == '-4' else 'IPv6'} routing {what}" in lost
        assert kernel.differences(DESIRED) == []
        assert kernel.reroute(DESIRED.marks) == []
        assert not watch.foreign()
    finally:
        watch.close()


def test_more_news_than_fit(netns: str, kernel: Kernel) -> None:
    """Our own flood is no alarm; a foreign change that drowned in it is one."""
    kernel.apply(DESIRED)
    watch = kernel.watch(room=4096)

    def flood() -> None:
        for number in range(100):
            kernel.apply(replace(DESIRED, capture_all=bool(number % 2)))

    try:
        flood()
        assert watch.foreign() == []
        flood()
        nft(netns, "delete table inet culvert")
        assert watch.foreign() == ["news were lost"]
    finally:
        watch.close()
