from collections.abc import Callable
from dataclasses import replace

import pytest

from agent.discovery.found import Found, Seen
from agent.discovery.merge import merge
from ca.resources.workload import Match


def found(source: str, name: str, match: Match) -> Found:
    return Found(source, f"{source}:{name}", "shop", name, "web", match)


def test_everything_that_does_not_collide_counts() -> None:
    a, b = found("files", "a", Match(uid=1)), found("users", "b", Match(uid=2))
    merged = merge({"users": Seen((b,)), "files": Seen((a,), whole=False)})
    assert dict(merged.found) == {a.key: a, b.key: b}
    assert (merged.conflicts, merged.whole) == ((), {"users"})


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (
            found("files", "a", Match(uid=1)),
            found("users", "a", Match(uid=2)),
            "has the same name as shop/a",
        ),
        (found("files", "a", Match(uid=1)), found("users", "b", Match(uid=1)), "is recognised by the same as shop/a"),
        (
            found("files", "a", Match(cgroup="/x/y.service")),
            found("systemd", "b", Match(cgroup="x/y.service")),
            "is recognised by the same as",
        ),
    ],
)
def test_the_first_source_goes_first(one: Found, other: Found, why: str) -> None:
    merged = merge({other.source: Seen((other,)), one.source: Seen((one,))})
    assert list(merged.found.values()) == [one]
    assert why in merged.conflicts[0]
    assert "which goes first" in merged.conflicts[0]


@pytest.mark.parametrize(
    ("unsound", "why"),
    [
        (lambda f: replace(f, namespace=""), "it has no namespace"),
        (lambda f: replace(f, service_account=""), "it has no serviceAccount"),
        (lambda f: replace(f, name="A"), "name 'A' is not a name"),
        (lambda f: replace(f, ports=(22,)), "port 22 is never captured"),
        (lambda f: replace(f, ports=(70000,)), "Expected `int` <= 65535"),
        (lambda f: replace(f, match=Match(uid=2**32)), "Expected `int` <= 4294967294"),
        (lambda f: replace(f, labels={"a b": "c"}), "label key 'a b'"),
    ],
)
def test_what_could_be_no_workload_is_not_found(unsound: Callable[[Found], Found], why: str) -> None:
    sound = Found("files", "x", "shop", "a", "web", Match(uid=1))
    with pytest.raises(ValueError, match=why):
        unsound(sound)
