import os
import resource
from io import FileIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.book import Book, Entry
from agent.connections import Direction, Party, Security
from agent.messages import Role
from agent.snapshot import Snapshot
from agent.tally import Tally, make
from agent.worker.budgets import PER_CONNECTION, SHARE, STORM, Account, Budgets
from ca.resources.limits import Limits
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Metadata
from ca.resources.workload import Workload, WorkloadSpec

OUT, IN = Direction.OUTBOUND, Direction.INBOUND


class Scene:
    """A worker's book and budgets, at a time of our own."""

    def __init__(self, own: Limits, common: Limits | None = None, share: int = 1, tally: Tally | None = None) -> None:
        self.now = 100.0
        self.book = Book(1, lambda: None)
        self.budgets = Budgets(share, tally, lambda: self.now)
        self.web = self.workload("web", own)
        self.db = self.workload("db", Limits())
        self.mesh(common or Limits())

    @staticmethod
    def workload(name: str, limits: Limits) -> Workload:
        return Workload(Metadata(name, "shop", {"mesh": "on"}), WorkloadSpec("n1", name, limits=limits))

    def mesh(self, limits: Limits) -> None:
        mesh = Mesh(Metadata("mesh"), MeshSpec("shop.example", limits=limits))
        self.snapshot = Snapshot("n1").apply(1, [mesh, self.web, self.db], [])

    def begin(self, workload: Workload | None = None, direction: Direction = OUT, descriptors: int = 1) -> Entry | str:
        """The entry of a connection that was charged, or why it was not."""
        entry = self.book.enter(direction, Security.MTLS, Party())
        who = workload or self.web
        if direction is OUT and descriptors == 1:
            over = self.budgets.spend(self.snapshot, who.title, entry)
        else:
            over = self.budgets.charge(self.snapshot, who, direction, entry, descriptors)
        assert entry.over_budget is bool(over)
        return over or entry

    def begun(self, count: int, **more) -> int:
        return sum(isinstance(self.begin(**more), Entry) for _ in range(count))

    def end(self, *entries: Entry | str) -> None:
        for entry in entries:
            assert isinstance(entry, Entry)
            self.book.close(entry)


def test_so_many_at_a_time_and_no_more() -> None:
    scene = Scene(Limits(connections=3))
    first, *_ = [scene.begin() for _ in range(3)]
    assert scene.begin() == "over its budget: 3 connections are open"
    assert scene.begun(5, workload=scene.db) == 5  # the neighbour's own
    assert scene.begun(5, direction=IN) == 3  # the other direction's own
    scene.end(first)
    assert scene.begun(2) == 1


def test_a_connection_is_given_back_once_however_it_ends() -> None:
    scene = Scene(Limits(connections=1))
    entry = scene.begin()
    refused = [scene.begin() for _ in range(3)]
    assert all(isinstance(r, str) for r in refused)
    for other in list(scene.book.live.values()):
        scene.book.close(other)
        scene.book.close(other)
    scene.end(entry)
    assert scene.begun(2) == 1


def test_so_many_in_a_second() -> None:
    scene = Scene(Limits(connections_per_second=10))
    assert scene.begun(15) == 10
    assert scene.begin() == "over its budget: more than 10 connections a second"
    scene.now += 0.5
    assert scene.begun(15) == 5
    scene.now += 3600
    assert scene.begun(15) == 10  # nobody saves up


def test_less_than_one_in_a_second_is_still_one() -> None:
    scene = Scene(Limits(connections_per_second=1), share=4)
    assert scene.begun(5) == 1
    scene.now += 4
    assert scene.begun(5) == 1


def test_memory_is_counted_at_the_most() -> None:
    scene = Scene(Limits(memory="2Mi"))
    most = 2**21 // PER_CONNECTION
    assert scene.begun(100) == most
    assert scene.begin() == f"over its budget of memory, 2Mi: {most} connections are open"
    assert Scene(Limits(memory="1Ki")).begun(5) == 1
    assert Scene(Limits(memory="1Gi", connections=2)).begun(5) == 2


def test_descriptors() -> None:
    scene = Scene(Limits(descriptors=5))
    assert scene.begun(5, descriptors=2) == 2
    assert scene.begin(descriptors=2) == "over its budget of descriptors in the agent: 4 are in use"
    assert scene.begun(5) == 1


def test_nobody_takes_all_descriptors() -> None:
    scene = Scene(Limits())
    available = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    account = Account()
    account.limit(Limits(), 1, available)
    assert account.most_here == int(available * SHARE) < available
    assert isinstance(scene.begin(descriptors=account.most_here + 1), str)
    assert isinstance(scene.begin(descriptors=account.most_here), Entry)
    assert isinstance(scene.begin(), str)
    assert isinstance(scene.begin(scene.db), Entry)


def test_the_mesh_says_what_the_workload_does_not() -> None:
    scene = Scene(Limits(connections=2), Limits(connections=9, connections_per_second=4))
    assert scene.begun(9) == 2
    assert scene.begun(9, workload=scene.db) == 4


def test_new_limits_hold_at_once_and_end_nothing() -> None:
    scene = Scene(Limits())
    entries = [scene.begin(scene.db) for _ in range(5)]
    scene.mesh(Limits(connections=3))
    assert scene.begun(1, workload=scene.db) == 0
    scene.end(*entries[:3])
    assert scene.begun(3, workload=scene.db) == 1


def test_workers_share() -> None:
    assert [Scene(Limits(connections=10), share=n).begun(20) for n in (1, 2, 3, 4)] == [10, 5, 4, 3]
    assert Scene(Limits(connections_per_second=10), share=2).begun(20) == 5


def test_with_a_tally_workers_keep_one_limit() -> None:
    with FileIO(make(2), "r+") as table:
        one, two = (Scene(Limits(connections=10), share=2, tally=Tally(os.dup(table.fileno()), n, 2)) for n in (0, 1))
        held = [one.begin() for _ in range(8)]
        assert two.begun(5) == 2
        assert two.begin() == "over its budget: 10 connections are open"
        one.end(*held[:5])
        assert two.begun(9) == 5
        assert one.begun(1) == 0
        # A worker that was replaced holds nothing.
        again = Scene(Limits(connections=10), share=2, tally=Tally(os.dup(table.fileno()), 0, 2))
        assert again.begun(9) == 3


def test_a_limit_that_comes_later_counts_what_was_there() -> None:
    with FileIO(make(2), "r+") as table:
        one, two = (Scene(Limits(), share=2, tally=Tally(os.dup(table.fileno()), n, 2)) for n in (0, 1))
        assert one.begun(4, workload=one.db) == 4
        for scene in (one, two):
            scene.mesh(Limits(connections=5))
        assert one.begun(1, workload=one.db) + two.begun(3, workload=two.db) == 1


def test_a_storm_rests_until_the_next_second() -> None:
    scene = Scene(Limits(connections=1))
    scene.begin()
    for _ in range(STORM - 1):
        scene.begin()
    assert scene.budgets.resting == set()
    scene.begin()
    assert scene.budgets.resting == {(Role.OUTBOUND, "shop/web")}
    scene.budgets.tick(scene.snapshot)
    assert scene.budgets.resting == set()
    scene.begin()
    assert scene.budgets.resting == set()


def test_what_arrives_rests_nobody_unless_the_socket_is_the_workloads_own() -> None:
    scene = Scene(Limits(connections=1))
    assert scene.begun(2 * STORM, direction=IN) == 1
    assert scene.budgets.resting == set()
    for listener, resting in ((None, set()), (Role.PLAINTEXT, {(Role.PLAINTEXT, "shop/web")})):
        entry = scene.book.enter(IN, Security.PLAINTEXT, Party())
        assert scene.budgets.charge(scene.snapshot, scene.web, IN, entry, 2, listener)
        assert scene.budgets.resting == resting


def test_who_is_rebuffed_rests_as_if_by_its_own_limits() -> None:
    scene = Scene(Limits())
    for _ in range(STORM):
        entry = scene.begin()
        assert scene.budgets.resting == set()
        assert entry.account is not None
        entry.account.rebuffed()
    scene.begin()
    assert scene.budgets.resting == {(Role.OUTBOUND, "shop/web")}
    scene.budgets.tick(scene.snapshot)
    scene.begin()
    assert scene.budgets.resting == set()


def test_who_is_no_longer_here_is_nobodys_to_charge() -> None:
    scene = Scene(Limits(connections=1))
    entry = scene.book.enter(OUT, Security.MTLS, Party())
    assert scene.budgets.spend(scene.snapshot, "shop/gone", entry) == ""
    assert entry.account is None


def test_accounts_of_those_who_are_gone_are_forgotten() -> None:
    scene = Scene(Limits())
    entry = scene.begin()
    gone = Snapshot("n1")
    scene.budgets.tick(gone)
    assert len(scene.budgets._accounts) == 1
    scene.end(entry)
    scene.budgets.tick(gone)
    assert len(scene.budgets._accounts) == 0


@given(
    st.builds(
        Limits, st.none() | st.integers(1, 9), st.none() | st.integers(1, 9), st.none() | st.integers(1, 20), st.none()
    ),
    st.lists(st.tuples(st.sampled_from(["begin", "end", "wait"]), st.integers(1, 2)), max_size=60),
)
def test_no_limit_is_ever_passed(limits: Limits, events: list[tuple[str, int]]) -> None:
    account, live, now, begun = Account(), list[int](), 0.0, list[float]()
    account.limit(limits, 1, 1000)
    for what, number in events:
        if what == "begin" and not account.take(now, number):
            live.append(number)
            begun.append(now)
        elif what == "end" and live:
            account.give(live.pop())
        elif what == "wait":
            now += number / 4
        assert (account.live, account.held) == (len(live), sum(live))
        assert limits.connections is None or len(live) <= limits.connections
        assert limits.descriptors is None or sum(live) <= limits.descriptors
        if rate := limits.connections_per_second:
            assert sum(t > now - 1 for t in begun) <= 2 * rate  # what was saved up, and what came since


@pytest.mark.parametrize("text", ["", "0", "64MB", "-1", "1.5Gi", "Mi"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is no size, as in 64Mi"):
        Limits(memory=text)
