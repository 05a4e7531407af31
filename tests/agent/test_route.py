"""Where captured connections go."""

import pytest
from msgspec.structs import replace

from agent.route import Direct, Local, Refuse, Tunnel, exactly, here, route
from agent.snapshot import Snapshot
from ca.identity import WorkloadIdentity
from ca.resources.mesh import Egress
from ca.resources.workload import NEVER_CAPTURED
from tests.agent.views import mesh, node, workload

WEB, DB, API = workload("web"), workload("db", "n2"), workload("api", "n2", address="10.0.2.9", ports=(80, 8080))
SIX = workload("six", "n3", ports=(80,))
NODES = node("n1"), node("n2", "10.0.0.2"), node("n3", "fd00::3")


def view(*more, egress: Egress = Egress.BYPASS, on: str = "n1") -> Snapshot:
    the_mesh = mesh()
    the_mesh = replace(the_mesh, spec=replace(the_mesh.spec, egress=egress))
    return Snapshot(on).apply(1, [the_mesh, *NODES, WEB, DB, API, SIX, *more], ())


def tunnel(to, address: str) -> Tunnel:
    return Tunnel(to, WorkloadIdentity("shop.example", "shop", to.metadata.name), address, 15008)


@pytest.mark.parametrize(
    ("address", "port", "expected"),
    [
        ("10.0.0.2", 80, tunnel(DB, "10.0.0.2")),
        ("10.0.2.9", 80, tunnel(API, "10.0.0.2")),
        ("10.0.2.9", 8080, tunnel(API, "10.0.0.2")),
        ("fd00::3", 80, tunnel(SIX, "fd00::3")),
        ("10.0.0.1", 80, Local(WEB)),
        ("127.0.0.1", 80, Local(WEB)),
        ("127.8.9.1", 80, Local(WEB)),
        ("::1", 80, Local(WEB)),
    ],
)
def test_mesh_addresses(address, port, expected):
    assert route(view(), address, port) == expected


@pytest.mark.parametrize("address", ["10.0.0.2", "10.0.2.9", "9.9.9.9", "fd00::3", "127.0.0.1"])
@pytest.mark.parametrize("egress", Egress)
def test_addresses_that_are_none_of_the_mesh(address, egress):
    decision = route(view(egress=egress), address, 81)
    expected = Refuse if egress is Egress.REGISTRY_ONLY else Direct
    assert isinstance(decision, expected)
    assert f"{address} port 81" in decision.reason


@pytest.mark.parametrize("port", sorted(NEVER_CAPTURED))
@pytest.mark.parametrize("address", ["10.0.0.2", "127.0.0.1", "9.9.9.9"])
def test_reserved_ports(address, port):
    assert isinstance(route(view(), address, port), Refuse)


@pytest.mark.parametrize("address", ["10.0.0.1", "127.0.0.1"])
def test_two_that_claim_one_place_are_both_refused(address):
    decision = route(view(workload("rival")), address, 80)
    assert isinstance(decision, Refuse)
    assert "shop/rival and shop/web" in decision.reason or "shop/web and shop/rival" in decision.reason


def test_a_node_that_has_not_joined():
    lost = workload("lost", "n9", address="10.0.9.9")
    decision = route(view(lost, node("n9", "")), "10.0.9.9", 80)
    assert decision == Refuse("shop/lost is on node n9, which has not joined yet")
    assert isinstance(route(view(lost), "10.0.9.9", 80), Refuse)


def test_the_tunnel_port_is_the_nodes():
    other = node("n2", "10.0.0.2")
    other = replace(other, spec=replace(other.spec, tunnel_port=25008))
    assert route(view(other), "10.0.0.2", 80).port == 25008


def test_without_a_mesh_nothing_goes_anywhere():
    assert isinstance(route(Snapshot("n1"), "10.0.0.2", 80), Refuse)


def test_what_is_not_enrolled_is_a_stranger():
    assert isinstance(route(view(workload("db", "n2", enrolled=False)), "10.0.0.2", 80), Direct)


def test_every_other_address_of_the_machine_means_its_workloads_too():
    """Or an enrolled caller could walk round the destination's policies by its second address."""
    seen = []

    def ours(address: str) -> bool:
        seen.append(address)
        return address == "192.168.7.1"

    assert route(view(), "192.168.7.1", 80, ours=ours) == Local(WEB)
    assert isinstance(route(view(), "192.168.7.2", 80, ours=ours), Direct)
    assert isinstance(route(view(workload("rival")), "192.168.7.1", 80, ours=ours), Refuse)
    seen.clear()
    assert isinstance(route(view(), "192.168.7.1", 81, ours=ours), Direct)
    route(view(), "10.0.0.2", 80, ours=ours)
    assert seen == []  # asked only where it matters


def test_inside_a_namespace_loopback_is_the_workload_itself_and_never_a_neighbour():
    boxed = workload("boxed", address="10.0.1.5", ports=(80, 443))
    the_view = view(boxed)
    assert route(the_view, "127.0.0.1", 80, inside=boxed) == Local(boxed)
    assert route(the_view, "::1", 443, inside=boxed) == Local(boxed)
    assert isinstance(route(the_view, "127.0.0.1", 8080, inside=boxed), Direct)
    assert isinstance(route(the_view, "192.168.7.1", 80, ours=lambda _: True, inside=boxed), Direct)
    assert route(the_view, "10.0.0.1", 80, inside=boxed) == Local(WEB)


def test_here_and_exactly():
    the_view = view(workload("boxed", address="10.0.1.5"))
    assert here(the_view, "10.0.0.1", 80) == WEB
    assert here(the_view, "192.168.7.1", 80) == WEB
    assert here(the_view, "192.168.7.1", 81) is None
    assert here(the_view, "10.0.1.5", 80).title == "shop/boxed"
    assert isinstance(here(view(workload("rival")), "127.0.0.1", 80), Refuse)
    assert exactly(the_view, "10.0.0.1", 80) == (WEB,)
    for address in ("192.168.7.1", "127.0.0.1", "169.254.169.254", "10.0.0.2", "10.0.2.9"):
        assert exactly(the_view, address, 80) == ()
