"""Live connections and a view that changes."""

import pytest
from msgspec.structs import replace

from agent.authorize import Authorizer
from agent.book import Book
from agent.connections import Direction, Party, Security, Verdict
from agent.policy import Facts
from agent.snapshot import Snapshot
from agent.worker.rejudge import rejudge
from ca.identity import WorkloadIdentity
from ca.resources.mesh import Mode
from ca.resources.metadata import Metadata
from ca.resources.policy import (
    Action,
    AuthorizationPolicy,
    AuthorizationPolicySpec,
    From,
    Rule,
    Source,
)
from tests.agent.test_book import Carried
from tests.agent.views import mesh, node, workload

WEB = WorkloadIdentity("shop.example", "shop", "web")
START = Snapshot("n1").apply(
    1, [mesh(), node("n1"), workload("web"), workload("db", ports=(81,)), workload("far", "n2")], ()
)
DENY = AuthorizationPolicy(
    Metadata("deny", "shop"),
    AuthorizationPolicySpec(action=Action.DENY, rules=(Rule(from_=(From(source=Source(principals=(str(WEB),))),)),)),
)


class Live:
    """One connection of each sort: out of web, nobody's that was passed on, into db out of a tunnel, into db in
    plaintext."""

    def __init__(self) -> None:
        self.book, self.authorizer, self.view = Book(1, lambda: None), Authorizer(), START
        self.out = self._enter(Direction.OUTBOUND, Party("shop/web", str(WEB)), Party("shop/far"), None)
        self.nobodys = self._enter(Direction.OUTBOUND, Party(address="10.0.0.1:4711"), Party(), None)
        self.tunnel = self._enter(
            Direction.INBOUND, Party("", str(WEB)), Party("shop/db"), Facts(WEB, "10.0.0.2", "10.0.0.1", 81)
        )
        self.plain = self._enter(Direction.INBOUND, Party(), Party("shop/db"), Facts(None, "10.9.9.9", "10.0.0.1", 81))

    def _enter(self, direction, source, destination, facts):
        entry = self.book.enter(direction, Security.MTLS, source)
        entry.destination, entry.facts, entry.carrier = destination, facts, Carried()
        self.book.open(entry)
        return entry

    def change(self, *put, delete=(), reset: bool = False) -> list[str]:
        """-> the sorts that were ended."""
        before, after = self.view, self.view.apply(self.view.revision + 1, put, delete)
        self.view = after
        rejudge(self.book, self.authorizer, before, after, None if reset else {*(r.key for r in put), *delete})
        ended = []
        for name in ("out", "nobodys", "tunnel", "plain"):
            carrier = getattr(self, name).carrier
            if carrier.aborted:
                assert all(reason and verdict is Verdict.REFUSED for reason, verdict in carrier.aborted)
                ended.append(name)
        return ended


@pytest.mark.parametrize(
    ("put", "ended"),
    [
        ([workload("web", enrolled=False)], ["out"]),
        ([workload("web", "n2")], ["out"]),
        ([workload("db", enrolled=False, ports=(81,))], ["tunnel", "plain"]),
        ([workload("db", "n2", ports=(81,))], ["tunnel", "plain"]),
        ([mesh(Mode.STRICT)], ["plain"]),
        ([mesh()], []),
        ([workload("other"), node("n3", "10.0.0.3")], []),
        ([DENY], ["tunnel"]),
        ([workload("far", "n2", enrolled=False)], []),  # its own node ends it
    ],
)
def test_a_change_ends_what_it_no_longer_allows(put, ended):
    assert Live().change(*put) == ended


def test_a_workload_that_gets_another_identity():
    """Policies judge its callers, or it, by the one that it had."""
    live = Live()
    live.tunnel.destination = Party("shop/db", "spiffe://shop.example/ns/shop/sa/db")
    live.plain.destination = live.tunnel.destination
    live.out.destination = Party("shop/far", "spiffe://shop.example/ns/shop/sa/far")
    same = workload("web"), workload("db", ports=(81,))
    assert live.change(*same) == []
    assert live.change(*(replace(w, spec=replace(w.spec, service_account="other")) for w in same)) == ["out", "tunnel"]


def test_deletion():
    assert Live().change(delete=[workload("web").key]) == ["out"]
    assert Live().change(delete=[workload("db").key]) == ["tunnel", "plain"]


def test_a_policy_that_goes_and_comes_back():
    live = Live()
    live.view = live.view.apply(2, [DENY], ())
    assert live.change(delete=[DENY.key]) == []
    assert live.change(DENY) == ["tunnel"]


def test_a_view_from_scratch_judges_all():
    live = Live()
    live.view = Snapshot("n1").apply(9, [mesh(), node("n1")], ())
    assert live.change(workload("db", ports=(81,)), reset=True) == ["out"]


def test_connections_of_others_are_not_even_looked_at():
    live = Live()
    live.view = Snapshot("n1")  # as if none of it were known any more: whoever is judged is ended
    live.view = live.view.apply(1, [mesh()], ())
    assert live.change(workload("other")) == []
    assert live.change(workload("web", enrolled=False)) == ["out"]
