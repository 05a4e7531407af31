"""Desired states for property tests."""

from ipaddress import ip_network

from hypothesis import strategies as st

from redirect.desired import Capture, Desired, Hold, Marks, Opening, Parent, Recognise, Rest, Shelter, Skip

addresses = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str)
ports = st.integers(1, 65535)
pairs = st.tuples(addresses, ports)
_names = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)
_numbers = st.integers(0, 2**32 - 2)
recognised = st.one_of(
    st.builds(Recognise, uid=_numbers),
    st.builds(Recognise, cgroup=st.tuples(st.integers(1, 4), st.integers(1, 2**64 - 1))),
    st.builds(Recognise, address=addresses),
)
_networks = st.one_of(
    st.builds(lambda a, bits: str(ip_network((a, bits), strict=False)), st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(lambda a, bits: str(ip_network((a, bits), strict=False)), st.ip_addresses(v=6), st.integers(0, 128)),
    # Neighbours, ends of the space, one inside another.
    st.sampled_from(
        ["10.0.0.0/8", "10.1.0.0/16", "11.0.0.0/8", "0.0.0.0/0", "0.0.0.0/8", "255.255.255.255/32", "fd00::/8", "::/0"]
    ),
)
_some_networks = st.lists(_networks, max_size=6).map(tuple)
_some_ports = st.lists(ports, max_size=3, unique=True).map(tuple)
_some_uids = st.lists(_numbers, max_size=2, unique=True).map(tuple)
_captures = st.builds(
    Capture,
    workload=st.tuples(_names, _names).map("/".join),
    recognise=recognised,
    port=ports,
    serves=st.lists(pairs, max_size=4).map(tuple),
    shares_address=st.booleans(),
    open=st.booleans(),
    open_ports=st.lists(ports, max_size=2).map(tuple),
    rest=st.sampled_from(Rest),
    skip=st.builds(Skip, _some_ports, _some_networks, _some_uids),
    opening=st.just(Opening()) | st.builds(Opening, _some_ports, _some_ports, _some_networks, _some_uids),
)


parents = st.lists(
    st.builds(
        Parent,
        level=st.integers(0, 3),
        number=st.integers(1, 2**64 - 1),
        children=st.frozensets(st.integers(1, 2**64 - 1), max_size=4),
    ),
    max_size=4,
).map(tuple)


_cards = st.binary(min_size=6, max_size=6).map(lambda b: b.hex(":"))
_shelters = st.builds(
    Shelter,
    endpoints=st.frozensets(pairs, max_size=3),
    behind=st.frozensets(st.tuples(st.from_regex(r"[a-z0-9-]{1,15}", fullmatch=True), ports), max_size=3),
    neighbours=st.frozensets(addresses, max_size=2),
    let_in=st.frozensets(pairs, max_size=2),
)
holds = st.builds(
    Hold,
    bridges=st.frozensets(st.from_regex(r"[a-z0-9-]{1,15}", fullmatch=True), max_size=3),
    vouched=st.frozensets(st.tuples(addresses, _cards), max_size=4),
    settled=st.frozensets(st.tuples(addresses, _cards), max_size=2),
    attended=st.frozensets(st.tuples(addresses, _cards), max_size=2),
    inside=st.frozensets(addresses, max_size=3),
    open_bridges=st.frozensets(st.from_regex(r"[a-z0-9-]{1,15}", fullmatch=True), max_size=2),
    open_inside=st.frozensets(addresses, max_size=2),
    shelter=_shelters,
    lobby=_shelters,
)


def _place(capture: Capture) -> object:
    return capture.recognise


@st.composite
def desired(draw: st.DrawFn) -> Desired:
    captures = draw(
        st.lists(_captures, max_size=5, unique_by=(lambda c: c.workload, _place, lambda c: c.port)).map(tuple)
    )
    if draw(st.booleans()):
        whole = draw(_captures.filter(lambda c: c.port not in {x.port for x in captures}))
        captures += (Capture("whole/namespace", Recognise(everything=True), whole.port, whole.serves),)
    return Desired(
        captures=captures,
        mesh=draw(st.frozensets(pairs, max_size=30)),
        agent_uids=tuple(draw(st.sets(_numbers, min_size=1, max_size=3))),
        never=draw(st.frozensets(ports, max_size=5)),
        inbound_port=draw(ports),
        capture_all=draw(st.booleans()),
        login_ports=draw(st.frozensets(ports, max_size=2)),
        spared=draw(st.frozensets(pairs, max_size=2)),
        until=draw(st.none() | st.just(1e9)),
        marks=draw(st.sampled_from([Marks(), Marks(rule_priority=60, nat_priority=-120)])),
        parents=draw(parents),
        hold=draw(holds),
        told=draw(st.booleans()),
        cgroups=draw(st.booleans()),
        resolver_port=draw(ports),
    )
