"""What of containers and other namespaces is held back by the machine's own table."""

from dataclasses import replace

from agent.discovery.tenants import Tenants
from agent.node.enrolment import HOST, Local
from agent.node.holding import hold, lodgings
from ca.resources.workload import Match
from redirect.desired import Hold, Opening, Shelter, Skip

BOX, OTHER, NEW = ("10.88.0.2", "02:00:00:00:00:02"), ("10.88.0.3", "02:00:00:00:00:03"), ("10.88.0.9", "02::09")
BRIDGES = {"shop/box": ("podman0",)}


def local(name: str, place: str = "/links/box", **rest: object) -> Local:
    made = Local(
        f"shop/{name}",
        f"spiffe://m/ns/shop/sa/{name}",
        place,
        Match(netns=place) if place else Match(uid=7),
        (),
        True,
    )
    return replace(made, **rest)  # type: ignore[arg-type] # some of its fields


def lives(*stations: tuple[str, str], others: tuple[tuple[str, str], ...] = (OTHER,)) -> Tenants:
    return Tenants({"/links/box": frozenset(stations)}, frozenset(others))


def test_others_are_vouched_for_and_a_container_that_is_captured_is_settled() -> None:
    found = hold([local("box")], BRIDGES, lives(BOX), {"shop/box"})
    assert found == Hold(frozenset({"podman0"}), frozenset({OTHER}), frozenset({BOX}))
    # Its namespace has no table yet: it may only wait.
    assert hold([local("box")], BRIDGES, lives(BOX), ()).settled == frozenset()


def test_a_container_that_is_not_enrolled_is_nobodys() -> None:
    assert hold([], {}, lives(BOX), ()) == Hold()
    beside = [local("beside", "/links/beside")]
    assert hold(beside, {"shop/beside": ("podman0",)}, lives(BOX), ()).vouched == {BOX, OTHER}


def test_what_a_setting_lets_out_is_vouched_for_once_its_table_stands() -> None:
    skipping = local("box", skip=Skip(ports=(3306,)))
    assert hold([skipping], BRIDGES, lives(BOX), ()).vouched == {OTHER}
    assert hold([skipping], BRIDGES, lives(BOX), {"shop/box"}).vouched == {BOX, OTHER}
    assert hold([skipping], BRIDGES, lives(BOX), {"shop/box"}).settled == frozenset()


def test_who_fails_open_is_held_only_while_the_agent_is_there() -> None:
    """And counted while it is not, unless it has a table that does so."""
    open_bridges = frozenset({"podman0"})
    alone = [local("box", open=True)]
    assert hold(alone, BRIDGES, lives(BOX), {"shop/box"}) == Hold(
        vouched=frozenset({BOX, OTHER}), attended=frozenset({BOX}), open_bridges=open_bridges
    )
    # What a skip lets out comes by here at any time.
    skipping = [local("box", open=True, skip=Skip(ports=(3306,)))]
    assert hold(skipping, BRIDGES, lives(BOX), {"shop/box"}).attended == frozenset()
    assert hold([local("box", skip=Skip(ports=(3306,)))], BRIDGES, lives(BOX), {"shop/box"}).attended == frozenset()
    assert hold(alone, BRIDGES, lives(BOX), ()) == Hold(vouched=frozenset({OTHER}), open_bridges=open_bridges)
    elsewhere = [*alone, local("beside", "/links/beside")]
    found = hold(elsewhere, {**BRIDGES, "shop/beside": ("podman1",)}, lives(BOX), ())
    assert (found.bridges, found.open_bridges) == ({"podman1"}, {"podman0"})
    both = [local("box", open=True), local("beside", "/links/beside")]
    bridges = {**BRIDGES, "shop/beside": ("podman0",)}
    assert hold(both, bridges, lives(BOX), {"shop/box"}).vouched == {BOX, OTHER}
    assert hold(both, bridges, lives(BOX), ()).vouched == {OTHER}
    assert hold(both, bridges, lives(BOX), ()).open_bridges == frozenset()  # it could be the other one


def test_the_first_container_of_a_pod_vouches_for_nobody() -> None:
    """It has the station of the workload in it, and no label."""
    assert hold([local("box")], BRIDGES, lives(BOX, others=(BOX, OTHER)), ()).vouched == {OTHER}


def test_a_namespace_that_no_engine_made_is_held_by_its_address() -> None:
    named = local("pod", "/run/netns/pod", address="10.0.0.7")
    assert hold([local("pod", "/run/netns/pod")], {}, Tenants(), ()) == Hold()  # it has its node's
    assert hold([named], {}, Tenants(), ()) == Hold(inside=frozenset({"10.0.0.7"}))
    assert hold([named], {}, Tenants(), {"shop/pod"}) == Hold(inside=frozenset({"10.0.0.7"}))
    skipping = replace(named, skip=Skip(ports=(3306,)))
    assert hold([skipping], {}, Tenants(), ()).inside == {"10.0.0.7"}
    assert hold([skipping], {}, Tenants(), {"shop/pod"}) == Hold()
    assert hold([replace(named, open=True)], {}, Tenants(), ()) == Hold(open_inside=frozenset({"10.0.0.7"}))
    assert hold([replace(named, open=True)], {}, Tenants(), {"shop/pod"}) == Hold()
    assert hold([local("web", HOST)], {}, Tenants(), ()) == Hold()


def test_bridges_are_remembered_while_a_container_is_away() -> None:
    found = lodgings([local("box")], {}, lives(BOX), {BOX[0]: "podman0"})
    assert found == BRIDGES
    assert lodgings([local("box")], found, Tenants(), {}) == BRIDGES
    assert lodgings([local("box")], found, lives(NEW), {NEW[0]: "podman1"}) == {"shop/box": ("podman1",)}
    assert lodgings([local("web", HOST)], {}, lives(BOX), {BOX[0]: "podman0"}) == {}


def test_plaintext_for_a_closed_container_is_refused_at_its_addresses_and_behind_its_bridge() -> None:
    box = local("box", address=BOX[0], serves=((BOX[0], 80), (BOX[0], 90)))
    found = hold([box], BRIDGES, lives(BOX), {"shop/box"}).shelter
    ports = {80, 90}
    assert found == Shelter(
        frozenset((BOX[0], port) for port in ports),
        frozenset(("podman0", port) for port in ports),
        frozenset({OTHER[0]}),
    )
    # After a boot, when nobody is known; and where it is not known where containers live.
    assert hold([box], BRIDGES, Tenants(), ()).shelter == Shelter(found.endpoints, found.behind)
    assert hold([box], {}, lives(BOX), ()).shelter == Shelter(found.endpoints)
    # By whatever address it has.
    assert (NEW[0], 80) in hold([box], BRIDGES, lives(NEW), ()).shelter.endpoints
    assert hold([local("web", HOST, serves=(("10.0.0.1", 80),))], {}, Tenants(), ()) == Hold()


def test_what_is_let_in_on_purpose_is_not_refused() -> None:
    box = local("box", address=BOX[0], serves=((BOX[0], 80), (BOX[0], 90), (BOX[0], 91)))
    left_open = replace(box, opening=Opening((90,), (91,), ("10.9.0.0/16",)))
    found = hold([left_open], BRIDGES, lives(BOX), ()).shelter
    assert (found.endpoints, found.behind) == ({(BOX[0], 80)}, {("podman0", 80)})
    assert found.let_in == {(BOX[0], 90), (BOX[0], 91)}
    # Users of this machine are nobody inside.
    assert (BOX[0], 91) in hold([replace(box, opening=Opening((), (91,), (), (7,)))], {}, lives(), ()).shelter.endpoints


def test_who_fails_open_is_reached_where_no_policy_would_refuse_anybody() -> None:
    box = local("box", address=BOX[0], serves=((BOX[0], 80), (BOX[0], 90)), open=True, open_ports=(80, 90))
    assert hold([box], BRIDGES, lives(BOX), ()).shelter == Shelter()
    strict = hold([replace(box, open_ports=(80,))], BRIDGES, lives(BOX), ()).shelter
    assert (strict.endpoints, strict.let_in) == ({(BOX[0], 90)}, {(BOX[0], 80)})
    # It stays reachable beside one that is closed, which may have any other address next.
    beside = local("beside", "/links/beside", serves=((NEW[0], 80),), address=NEW[0])
    both = hold([box, beside], {**BRIDGES, "shop/beside": ("podman0",)}, lives(BOX), ()).shelter
    assert (both.endpoints, both.behind, both.neighbours) == (
        {(NEW[0], 80)},
        {("podman0", 80)},
        {BOX[0], OTHER[0]},
    )


def test_what_arrives_waits_where_there_is_no_table() -> None:
    box = local("box", address=BOX[0], serves=((BOX[0], 80),))
    found = hold([box], BRIDGES, lives(BOX), ())
    assert found.lobby == found.shelter != Shelter()
    assert hold([box], BRIDGES, lives(BOX), {"shop/box"}) == replace(found, lobby=Shelter(), settled=frozenset({BOX}))
    # One that has its table is somebody else to one that has not.
    beside = local("beside", "/links/beside", serves=((NEW[0], 80), (NEW[0], 90)), address=NEW[0])
    both = hold([box, beside], {**BRIDGES, "shop/beside": ("podman0",)}, lives(BOX), {"shop/box"})
    assert both.lobby == Shelter(
        frozenset({(NEW[0], 80), (NEW[0], 90)}),
        frozenset({("podman0", 80), ("podman0", 90)}),
        frozenset({BOX[0], OTHER[0]}),
    )
