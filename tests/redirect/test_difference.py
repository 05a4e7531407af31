"""What a change would do, told before."""

import time
from dataclasses import replace

from redirect.desired import Capture, Desired, Recognise
from redirect.difference import as_text, in_words
from redirect.kernel import Kernel
from redirect.plan import plan
from redirect.ruleset import Chain

WEB = Capture("shop/web", Recognise(uid=1001), 15101, (("10.0.0.1", 80),))
DB = Capture("shop/db", Recognise(cgroup=(2, 4711)), 15102, (("fd00::1", 5432),))
OLD = Desired((WEB,), frozenset({("10.0.0.1", 80)}))
NEW = Desired((WEB, DB), frozenset({("10.0.0.1", 80), ("fd00::1", 5432)}))


def test_nothing_differs() -> None:
    assert as_text(plan(OLD), OLD) == ""
    assert in_words(plan(OLD), OLD) == []
    assert (as_text(None, None), in_words(None, None)) == ("", [])


def test_the_kernels_order_and_a_running_timer_are_no_difference(kernel: Kernel) -> None:
    until = time.clock_gettime(time.CLOCK_BOOTTIME) + 60
    kernel.apply(OLD)
    for desired in (NEW, replace(NEW, until=until)):
        kernel.apply(desired)
        assert as_text(kernel.held(), desired) == ""


def test_from_nothing() -> None:
    text = as_text(None, OLD).splitlines()
    assert {line[0] for line in text[3:]} == {"+"}
    assert in_words(None, OLD) == [
        "shop/web: what uid 1001 sends to the mesh goes to the agent, port 15101",
        "addresses of the mesh: 1 more, 0 fewer",
        "10.0.0.1 port 80: plaintext that arrives there goes to the agent",
    ]


def test_one_more_and_one_fewer() -> None:
    assert in_words(plan(OLD), NEW) == [
        "shop/db: what cgroup 4711 sends to the mesh goes to the agent, port 15102",
        "addresses of the mesh: 1 more, 0 fewer",
        "fd00::1 port 5432: plaintext that arrives there goes to the agent",
    ]
    assert in_words(plan(NEW), OLD)[0] == "shop/db: is not captured any more"
    assert "+\t\t\tfd00::1 . 5432," in as_text(plan(OLD), NEW).splitlines()
    assert in_words(plan(OLD), None)[0] == "shop/web: is not captured any more"


def test_what_others_changed_is_told_rule_by_rule() -> None:
    held = plan(OLD)
    held = replace(held, chains=tuple(Chain(c.name, (), c.base) if c.name == "out" else c for c in held.chains))
    words = in_words(held, OLD)
    assert words[0].startswith("chain out lacks rule 1")
    many = replace(held, chains=(*held.chains, *(Chain(f"x{n}", ()) for n in range(30))))
    assert in_words(many, OLD)[-1].startswith("and ")
