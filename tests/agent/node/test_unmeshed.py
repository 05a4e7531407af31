import trio

from agent.node.unmeshed import news, summarise
from redirect.counts import Counters, Counts


def test_only_what_grew_is_news() -> None:
    before = {"shop/web": Counts(unmeshed=5, dns=2), "shop/db": Counts(unmeshed=7), "shop/cron": Counts(blocked=1)}
    now = {
        "shop/web": Counts(unmeshed=5, dns=90),  # names are asked for all the time
        "shop/db": Counts(unmeshed=9, dns=1),
        "shop/cron": Counts(blocked=4),
        "shop/new": Counts(unmeshed=3),
        "shop/quiet": Counts(captured=100),
    }
    assert dict(news(before, now)) == {
        "shop/cron": {"unmeshed": 0, "dns": 0, "blocked": 3},
        "shop/db": {"unmeshed": 2, "dns": 1, "blocked": 0},
        "shop/new": {"unmeshed": 3, "dns": 0, "blocked": 0},
    }


def test_counts_that_began_anew_are_no_news() -> None:
    assert dict(news({"shop/web": Counts(unmeshed=5)}, {"shop/web": Counts(unmeshed=2)})) == {}


async def test_the_log_has_a_line_for_each_who_sent_something(autojump_clock, caplog) -> None:
    answers = [{}, {"shop/web": Counts(unmeshed=2, dns=1)}, {"shop/web": Counts(unmeshed=2, dns=9)}]
    asked = 0

    async def counters() -> Counters:
        nonlocal asked
        asked += 1
        return Counters(answers[min(asked, len(answers)) - 1])

    import structlog

    with structlog.testing.capture_logs() as lines, trio.move_on_after(100):
        await summarise(counters, every=10)
    assert asked >= 9
    assert [{k: v for k, v in line.items() if k != "log_level"} for line in lines] == [
        {"event": "unmeshed-traffic", "workload": "shop/web", "seconds": 10, "unmeshed": 2, "dns": 1, "blocked": 0}
    ]
