"""A namespace that is told of what its kernel cannot do, and what it finds there."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from agent.node.namespace import Namespace, remove_table
from redirect.counts import Counters
from redirect.desired import Capture, Desired, Hold, Marks, Recognise
from redirect.kernel import Kernel
from redirect.netlink import CaptureError
from tests.redirect.conftest import namespace
from tests.redirect.traffic import MARKS, REFUSED, Server, nft, reached

THERE = "127.0.0.1"
OPEN = Capture("shop/open", Recognise(uid=1001), 15101, ((THERE, 82),), open=True, open_ports=(82,))
CLOSED = Capture("shop/closed", Recognise(uid=1002), 15102)
DESIRED = Desired((OPEN, CLOSED), frozenset({(THERE, 80)}))
BEHIND = Hold(open_bridges=frozenset({"boxes"}), open_inside=frozenset({"10.99.0.5"}))


@pytest.fixture
def place() -> Iterator[str]:
    """The path of a namespace in which servers run, and no agent's."""
    with namespace() as name, ExitStack() as stack:
        for port in (80, 82):
            stack.enter_context(Server(name, "application", THERE, port))
        yield f"/run/netns/{name}"


@pytest.fixture
def cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel whose tables have no owner, or whose connections no labels; this one has both."""

    def refuse(self: Kernel, marks: Marks) -> None:
        raise CaptureError(errno.EOPNOTSUPP, "the kernel cannot tie rules to the agent's life: it needs Linux 5.12")

    monkeypatch.setattr(Kernel, "appear", refuse)


def test_a_kernel_that_can_be_told_lets_pass_what_fails_open(place: str) -> None:
    """That the next test could fail."""
    made = Namespace(place, MARKS)
    made.apply(DESIRED)
    assert made.doubt == ""
    made.close()
    name = Path(place).name
    assert reached(name, THERE, 80, uid=1001) == "application"
    assert reached(name, THERE, 82) == "application"
    assert reached(name, THERE, 80, uid=1002) == REFUSED


@pytest.mark.usefixtures("cannot_tell")
def test_where_the_kernel_cannot_be_told_of_us_all_fails_closed(place: str) -> None:
    made = Namespace(place, MARKS)
    name = Path(place).name
    try:
        made.apply(DESIRED)
        assert made.doubt == (
            "failMode open is not possible, and all fails closed: "
            "the kernel cannot tie rules to the agent's life: it needs Linux 5.12"
        )
        assert made.applied == DESIRED  # nothing to be tried again for
        made.step_aside()
        for uid in (1001, 1002):
            assert reached(name, THERE, 80, uid=uid) == REFUSED
        assert reached(name, THERE, 82) == REFUSED
        assert "ct label" not in nft(name, "list", "table", "inet", "culvert")
        # Nor does it depend on it who is held; where nothing fails open there is nothing to doubt.
        made.apply(replace(DESIRED, captures=(CLOSED,), hold=BEHIND))
        assert "all fails closed" in made.doubt
        assert '"boxes"' in nft(name, "list", "set", "inet", "culvert", "bridges")
        made.apply(replace(DESIRED, captures=(CLOSED,), hold=BEHIND.closed))
        assert made.doubt == ""
        assert "ct label" not in nft(name, "list", "table", "inet", "culvert")
        made.apply(replace(DESIRED, captures=(CLOSED,)))
        assert made.doubt == ""
    finally:
        made.close()


@pytest.mark.parametrize("then", ["apply", "remove", "forget"])
def test_what_passed_is_known_though_its_rules_go(place: str, then: str) -> None:
    made = Namespace(place, MARKS)
    made.apply(DESIRED)
    made.close()
    assert reached(Path(place).name, THERE, 80, uid=1001) == "application"
    past: list[Counters] = []
    if then == "forget":
        remove_table(place, MARKS, past.append)
    else:
        again = Namespace(place, MARKS, past=past.append)
        for _ in range(2):
            again.apply(replace(DESIRED, captures=(CLOSED,))) if then == "apply" else again.remove()
        again.close()
    (found,) = past
    assert found.workloads["shop/open"].passed == 1
