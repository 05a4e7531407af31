"""Where a revision is active, where it is not, and why."""

from agent.cli.tables import MOST_NAMED, lagging, resources, status, why
from ca.contract import VERSION, NodeStatus, Status
from ca.resources.metadata import Metadata
from ca.resources.revocation import Revocation, RevocationSpec


def node(name: str = "web-1", **facts) -> NodeStatus:
    given = {"address": "10.0.0.1", "connected": True, "active": 7, "seen": 90.0, "contract": VERSION}
    return NodeStatus(name, **(given | facts))


def mesh(*nodes: NodeStatus) -> Status:
    return Status(7, "shop.example", list(nodes), time=100.0)


def test_active_everywhere():
    state = mesh(node(), node("web-2"), node("new", address="", connected=False, active=0))
    assert lagging(state) == ""
    assert [row[-1] for row in status(state)[1]] == ["", "", "has not joined yet"]


def test_those_where_it_is_not_are_named():
    state = mesh(node(), node("db", active=5), node("far", connected=False))
    assert lagging(state) == "revision 7 is active on 1 of 3 nodes; not known to be on db, far"
    many = mesh(*(node(f"n{i}", active=1) for i in range(MOST_NAMED + 5)))
    assert lagging(many).endswith("n9 and 5 more")


def test_why():
    assert why(node(active=5, problems=["shop/web: no certificate"]), 7) == "2 behind; shop/web: no certificate"
    assert why(node(connected=False, away="the connection broke"), 7) == "not connected: the connection broke"
    assert why(node(connected=False), 7) == "not connected"
    assert why(node(connected=False, seen=0.0), 7) == "not seen since the centre started"
    assert why(node(contract="1.0"), 7) == f"speaks contract 1.0, not {VERSION}: what is newer does not reach it"


def test_serials_are_told_as_certificates_tells_them():
    """Whole they fill ten lines of a terminal; `-o yaml` has them."""
    it = Revocation(Metadata("it"), RevocationSpec(serials=("721461ced0763c4d", "7748feb2ffe85bf2", "8")))
    assert resources("Revocation", [it], None)[1][0][2] == "721461ce,7748feb2,..."
