from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.messages import Signs
from agent.node.enrolment import (
    HOST,
    NAMESPACED_PORT,
    NO_CGROUP,
    Enrolment,
    Local,
    Ports,
    admitted,
    allot,
    common,
    enrol,
    guarded,
    release,
    signs,
    tables,
)
from ca.resources.mesh import Egress, Mesh, MeshSpec, Mode
from ca.resources.metadata import Metadata
from ca.resources.workload import Match
from redirect.desired import Capture, Desired, Hold, Parent, Recognise
from redirect.plan import plan
from tests.agent.views import mesh, node, view, workload

WEB = "spiffe://shop.example/ns/shop/sa/web"
DB = "spiffe://shop.example/ns/shop/sa/db"
POOL = range(15100, 15103)


def local(name: str, place: str = HOST, match: Match | None = None) -> Local:
    identity = f"spiffe://shop.example/ns/shop/sa/{name}"
    match = match or (Match(netns=place) if place else Match(uid=7))
    return Local(f"shop/{name}", identity, place, match, (("10.0.0.1", 80),), True)


def test_the_enrolled_of_this_node_only():
    v = view(
        mesh(),
        node("n1"),
        node("n2", "10.0.0.2"),
        workload("web"),
        workload("db", address="10.0.1.5", ports=[5432, 5433]),
        workload("off", enrolled=False),
        workload("far", on="n2"),
        matches={"web": Match(uid=7), "db": Match(netns="db"), "off": Match(uid=8), "far": Match(uid=9)},
    )
    enrolment = enrol(v)
    assert enrolment.locals == (
        Local(
            "shop/db",
            DB,
            "/run/netns/db",
            Match(netns="db"),
            (("10.0.1.5", 5432), ("10.0.1.5", 5433)),
            True,
            address="10.0.1.5",
        ),
        Local("shop/web", WEB, HOST, Match(uid=7), (("10.0.0.1", 80),), True),
    )
    assert enrolment.problems == ()
    assert enrolment.identities == {WEB, DB}
    assert enrolment.at(HOST) == enrolment.locals[1:]


def test_an_address_of_its_own_is_not_shared():
    v = view(mesh(), node("n1"), workload("web", address="10.0.0.7"), matches={"web": Match(address="10.0.0.7")})
    assert not enrol(v).locals[0].shares_address


def test_nothing_is_enrolled_before_the_mesh_is_known():
    assert enrol(view(workload("web"), matches={"web": Match(uid=7)})) == Enrolment()


def test_who_cannot_be_recognised_is_a_problem_of_its_own():
    v = view(
        mesh(),
        node("n1"),
        *(workload(n) for n in ("a", "b", "c", "d", "e", "f", "g", "h")),
        matches={
            "a": Match(uid=7),
            "b": Match(uid=7),
            "c": Match(netns="x"),
            "d": Match(netns="/run/netns/x"),
            "f": Match(cgroup="/a.slice"),
            "g": Match(cgroup="./a.slice"),
            "h": Match(cgroup="."),
        },
    )
    enrolment = enrol(v)
    assert [w.workload for w in enrolment.locals] == ["shop/a", "shop/c", "shop/f", "shop/h"]
    same_uid, same_namespace, nothing, same_cgroup = enrolment.problems
    assert same_uid.startswith("workload shop/b: it is recognised by the same uid 7 as shop/a")
    assert same_namespace.startswith("workload shop/d: it is recognised by the same netns /run/netns/x as shop/c")
    assert same_cgroup.startswith("workload shop/g: it is recognised by the same cgroup a.slice as shop/f")
    assert nothing.startswith("workload shop/e: nothing says how to recognise it")


def test_admitted_with_a_certificate_or_when_held():
    enrolment = Enrolment((local("web"), local("db", "/run/netns/db"), local("new")))
    assert admitted(enrolment, Ports(), {WEB}) == enrolment.locals[:1]
    assert admitted(enrolment, Ports({"shop/web": 15100}, {"shop/db": "/run/netns/db"}), ()) == enrolment.locals[:2]
    assert admitted(enrolment, Ports({"shop/db": 15100}, {"shop/db": "/elsewhere"}), ()) == ()


def test_ports_are_kept_and_not_given_out_again_at_once():
    ports, problems = allot(Ports(), [local("a"), local("b"), local("c", "/run/netns/c")], POOL)
    assert ports == Ports({"shop/a": 15100, "shop/b": 15101}, {"shop/c": "/run/netns/c"}, 15101)
    assert problems == ()
    ports = release(ports, [local("b")])
    assert ports == Ports({"shop/b": 15101}, {}, 15101)
    ports, _ = allot(ports, [local("b"), local("d"), local("a")], POOL)
    assert ports.outbound == {"shop/b": 15101, "shop/d": 15102, "shop/a": 15100}
    full, problems = allot(ports, [local("e")], POOL)
    assert full == ports
    assert problems == ("workload shop/e: all 3 capture ports are in use; widen capture_ports",)


def test_a_port_outside_a_new_range_is_replaced():
    ports, _ = allot(Ports({"shop/a": 20000}, {}, 20000), [local("a")], POOL)
    assert ports.outbound == {"shop/a": 15100}


def test_a_workload_that_moves_keeps_both_until_released():
    before = Ports({"shop/a": 15100}, {}, 15100)
    moved = local("a", "/run/netns/a")
    ports, _ = allot(before, [moved], POOL)
    assert ports == Ports({"shop/a": 15100}, {"shop/a": "/run/netns/a"}, 15100)
    assert release(ports, [moved]) == Ports({}, {"shop/a": "/run/netns/a"}, 15100)


@given(st.lists(st.sets(st.sampled_from("abcdef")), max_size=20))
def test_no_two_workloads_share_a_port(rounds):
    ports = Ports()
    for names in rounds:
        wanted = [local(n) for n in sorted(names)]
        kept = {w.workload: ports.outbound[w.workload] for w in wanted if w.workload in ports.outbound}
        ports, problems = allot(ports, wanted, POOL)
        assert len(set(ports.outbound.values())) == len(ports.outbound)
        assert set(ports.outbound.values()) <= set(POOL)
        assert kept.items() <= ports.outbound.items()
        assert len(problems) == len(names - {w.partition("/")[2] for w in ports.outbound})
        ports = release(ports, wanted)
        assert set(ports.outbound) <= {w.workload for w in wanted}


def test_tables():
    v = view(mesh(), node("n1"), workload("web"), workload("db", address="10.0.1.5", ports=[5432]))
    base = Desired(agent_uids=(0, 65534))
    unit = local("unit", match=Match(cgroup="system.slice/unit.service"))
    gone = local("gone", match=Match(cgroup="/system.slice/gone.service"))
    there = local("db", "/run/netns/db")
    ports = Ports({"shop/unit": 15100, "shop/gone": 15101, "shop/web": 15102})
    got = tables(
        v, [unit, gone, local("web"), local("portless"), there], ports, {"system.slice/unit.service": (2, 99)}, base
    )
    mesh_addresses = frozenset({("10.0.0.1", 80), ("10.0.1.5", 5432)})
    serves = (("10.0.0.1", 80),)
    assert got == {
        HOST: replace(
            base,
            mesh=mesh_addresses,
            captures=(
                Capture("shop/unit", Recognise(cgroup=(2, 99)), 15100, serves, True),
                Capture("shop/gone", Recognise(cgroup=(2, NO_CGROUP - 15101)), 15101, serves, True),
                Capture("shop/web", Recognise(uid=7), 15102, serves, True),
            ),
        ),
        "/run/netns/db": replace(
            base,
            mesh=mesh_addresses,
            captures=(Capture("shop/db", Recognise(everything=True), NAMESPACED_PORT, serves, True),),
        ),
    }


@pytest.mark.parametrize("egress", Egress)
def test_all_is_captured_unless_egress_is_bypassed(egress):
    v = view(Mesh(Metadata("mesh"), MeshSpec("shop.example", egress=egress)))
    table = tables(v, [local("web", "/x")], Ports(), {}, Desired())["/x"]
    assert table.capture_all == (egress is not Egress.BYPASS)


def capture(name: str, *serves: int, uid: int = 7) -> Capture:
    return Capture(f"shop/{name}", Recognise(uid=uid), 15100, tuple(("10.0.0.1", p) for p in serves))


def test_in_between_only_what_both_hold():
    old = Desired((capture("a", 80, 81), capture("b", 90), capture("c", uid=8)), frozenset({("x", 1), ("y", 1)}))
    new = Desired((capture("c", uid=9), capture("a", 81, 82), capture("d")), frozenset({("y", 1), ("z", 1)}))
    assert common(old, new) == Desired((capture("a", 81), capture("c", uid=9)), frozenset({("y", 1)}))
    assert common(old, old) == old
    assert common(replace(old, capture_all=True), old) == old
    assert common(replace(old, until=7.0), old) == old


def test_in_between_the_ports_of_one_that_moves_are_guarded():
    """Where all addresses of a place are its own. One that has an address to itself has left the old one."""
    old = replace(capture("a", 80, 81), shares_address=True)
    new = replace(old, serves=(("10.0.0.2", 80), ("10.0.0.2", 82)))
    (between,) = common(Desired((old,)), Desired((new,))).captures
    assert between.serves == (("10.0.0.2", 80),)
    alone = [Desired((replace(c, shares_address=False),)) for c in (old, new)]
    assert common(*alone).captures[0].serves == ()
    # The node's ports are guarded at all its addresses, also at the one that the workload had to itself.
    assert common(alone[0], Desired((new,))).captures[0].serves == (("10.0.0.1", 80),)
    assert common(Desired((old,)), alone[1]).captures[0].serves == (("10.0.0.2", 80),)


def test_in_between_they_are_held_who_begin_or_cease_to_fail_open():
    closed = Hold(bridges=frozenset({"a", "b"}), inside=frozenset({"x", "y"}))
    open_ = Hold(open_bridges=frozenset({"a", "c"}), open_inside=frozenset({"x"}))
    for old, new in ((closed, open_), (open_, closed)):
        between = common(Desired(hold=old), Desired(hold=new)).hold
        assert between == Hold(open_bridges=frozenset({"a"}), open_inside=frozenset({"x"}))
    assert common(Desired(hold=closed), Desired(hold=closed)).hold == closed


def test_in_between_nobody_is_asked_about_cgroups_before_somebody_can_answer():
    """The first unit's own connections would be refused, for want of a listener."""
    old = Desired((capture("a", 80),))
    unit = Capture("shop/unit", Recognise(cgroup=(2, 99)), 15101)
    assert common(old, replace(old, captures=(*old.captures, unit), parents=(Parent(1, 1),))) == old


def test_what_is_written_on_a_container_is_guarded_where_a_policy_may_refuse():
    """Although the mesh does not know of it, or no more."""
    place = "/run/netns/db"
    serves = {place: frozenset({80, 5432}), "/run/netns/other": frozenset({81})}
    box, web = local("db", place), local("web")
    for mode, more in ((Mode.STRICT, (("127.0.0.1", 5432),)), (Mode.PERMISSIVE, ())):
        v = view(mesh(mode), node("n1"), workload("db", ports=[]), workload("web"))
        assert guarded(v, [box, web], serves) == (replace(box, serves=(*box.serves, *more)), web)


def test_in_between_there_is_a_table_also_when_nothing_is_left_to_capture():
    old = Desired(
        (replace(capture("a", 80), open=True),),
        frozenset({("x", 1)}),
        capture_all=True,
        until=7.0,
        login_ports=frozenset({2222}),
        parents=(Parent(1, 1),),
        hold=Hold(frozenset({"br0"})),
        open_elsewhere=True,
    )
    empty = common(old, None)
    assert empty == Desired(login_ports=frozenset({2222}))
    assert not empty.asks
    # It is the kernel's translation that counts: without a chain for it there is none.
    assert {c.base.type for c in plan(empty).chains if c.base} >= {"nat"}
    assert common(empty, None) == empty


def test_what_fails_open_elsewhere_is_counted_by_the_hosts_table():
    v = view(mesh(), node("n1"))
    place = "/run/netns/db"
    open_ = replace(local("db", place), open=True)
    addressed, boxed = replace(open_, address="10.0.0.7"), Ports(bridges={"shop/db": ("podman0",)})
    for there, ports in ((addressed, Ports()), (open_, boxed)):
        got = tables(v, [there], ports, {}, Desired())
        assert [got[p].open_elsewhere for p in (HOST, place)] == [True, False]
    # Nobody could be told by what passes here, or all is held.
    for there in (open_, replace(addressed, open=False)):
        assert HOST not in tables(v, [there], Ports(), {}, Desired())
    hold = Hold(open_bridges=frozenset({"a", "b"}), open_inside=frozenset({"x", "y"}))
    less = Hold(open_bridges=frozenset({"b", "c"}), open_inside=frozenset({"y"}))
    between = common(Desired(hold=hold), Desired(hold=less))
    assert between is not None
    assert between.hold == Hold(open_bridges=frozenset({"b"}), open_inside=frozenset({"y"}))


def test_parents_are_the_hosts_alone_and_signs_say_whose_is_what():
    v = view(mesh(), node("n1"), workload("web"))
    parents = (Parent(0, 1, frozenset({5})),)
    unit = local("unit", match=Match(cgroup="/system.slice/unit.service"))
    other = local("other", match=Match(cgroup="/mnt/x/./y.service"))
    later = local("later", match=Match(cgroup="y.service"))
    addressed = local("address", match=Match(address="10.0.0.7"))
    there = local("db", "/run/netns/db")
    got = tables(v, [unit, there], Ports({"shop/unit": 15100}), {}, Desired(), parents)
    assert got[HOST].parents == parents
    assert got["/run/netns/db"].parents == ()
    assert common(replace(got[HOST], parents=(Parent(0, 1),)), got[HOST]) == got[HOST]
    assert signs([unit, other, later, addressed, local("web"), there], "/mnt/x") == Signs(
        {"system.slice/unit.service": "shop/unit", "y.service": "shop/other"},
        {"10.0.0.7": "shop/address"},
        {7: "shop/web"},
    )
