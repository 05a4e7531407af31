"""Desired states for property tests."""

from hypothesis import strategies as st

from redirect.desired import Capture, Desired, Recognise

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
_captures = st.builds(
    Capture,
    workload=st.tuples(_names, _names).map("/".join),
    recognise=recognised,
    port=ports,
    serves=st.lists(pairs, max_size=4).map(tuple),
    shares_address=st.booleans(),
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
    )
