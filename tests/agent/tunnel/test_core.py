"""The core against h2 as its peer, in both roles."""

import struct

import h2.exceptions
import pytest
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.tunnel import frames
from agent.tunnel.core import CONNECTION_WINDOW, CoreError
from agent.tunnel.frames import ProtocolError
from agent.tunnel.negotiation import MAX_STREAMS
from agent.tunnel.stream import MAX_WINDOW, STREAM_WINDOW, Answered, Budget, Ended, GoAway, Reset, Settled, Writable
from tests.agent.tunnel.peers import ASK, Ours, Theirs, shuttle

START = Budget().left
EFFORT = settings.default.max_examples / 100  # more when exploring


def meet(*, client: bool = True, cut: int = 2**30, **more: dict[SettingCodes, int]) -> tuple[Ours, Theirs]:
    """The two ends after their greetings; `client` says which one ours is."""
    ours, theirs = Ours(client=client), Theirs(client=not client, **more)
    shuttle(ours, theirs, cut)
    return ours, theirs


def opened(ours: Ours, theirs: Theirs) -> int:
    number = (ours if ours.core.client else theirs).open()
    shuttle(ours, theirs)
    return number


roles = pytest.mark.parametrize("client", [True, False], ids=["client", "server"])


# ---- everything at once

SIZES = st.one_of(st.integers(0, 40), st.integers(0, 100_000), st.just(STREAM_WINDOW + 1), st.just(1_000_000))
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("open", "ours", "theirs") * 4
            + ("our end", "their end", "our reset", "their reset", "our stall", "their stall", "resume")
            + ("settings", "ping", "shuttle")
        ),
        st.integers(0, 30),
        SIZES,
    ),
    max_size=60,
)


@settings(max_examples=int(50 * EFFORT))
@given(
    st.booleans(),
    STEPS,
    st.sampled_from([0, 1, 100, 65535, 2**20, 2**31 - 1]),
    st.sampled_from([1, 7, 1000, 2**14, 2**30]),
)
def test_any_traffic(client, steps, window, cut):
    """Whatever is written before an orderly end arrives, in order; what is reset is seen as reset; nothing is kept."""
    ours, theirs = meet(client=client, settings={SettingCodes.INITIAL_WINDOW_SIZE: window})
    sent = {id(ours): {}, id(theirs): {}}
    streams, reset = [], set()
    for act, which, size in steps:
        number = streams[which % len(streams)] if streams else 0
        if act == "open":
            if len(streams) < 20:
                number = (ours if client else theirs).open()
                streams.append(number)
                sent[id(ours)][number], sent[id(theirs)][number] = bytearray(), bytearray()
            if not client:
                shuttle(ours, theirs)
        elif act == "shuttle":
            shuttle(ours, theirs, cut)
        elif act == "settings":
            values = {SettingCodes.INITIAL_WINDOW_SIZE: [1, 1000, 65535, 2**22][which % 4]}
            theirs.h2.update_settings(values | {SettingCodes.MAX_FRAME_SIZE: [2**14, 2**16][which % 2]})
        elif act == "ping":
            ours.core.ping()
            theirs.h2.ping(b"12345678")
        elif not number or number in reset:
            continue
        elif act in ("ours", "theirs"):
            end = ours if act == "ours" else theirs
            size = min(size, cut * 1000)
            if number in end.queue and number not in end.ending and not _ended_here(end, number):
                body = bytes([which + len(sent[id(end)][number]) & 0xFF]) * size
                end.queue[number] += body
                sent[id(end)][number] += body
        elif act in ("our end", "their end"):
            end = ours if act == "our end" else theirs
            if number in end.queue and not _ended_here(end, number):
                end.ending.add(number)
        elif act == "our stall":
            ours.stalled.add(number)
        elif act == "their stall":
            theirs.stalled.add(number)
        elif act == "resume":
            ours.resume(number)
            theirs.resume(number)
        elif act == "our reset" and number in ours.core.streams:
            ours.core.reset(ours.streams[number])
            ours.queue[number].clear()
            reset.add(number)
        elif act == "their reset" and number in theirs.queue and _open_in_h2(theirs, number):
            theirs.h2.reset_stream(number, 8)
            theirs.queue[number].clear()
            theirs.ending.discard(number)
            reset.add(number)
    # The end: nobody stalls any more, windows are open, and every stream ends both ways.
    theirs.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2**20})
    shuttle(ours, theirs)
    for number in streams:
        if number not in reset:
            ours.resume(number)
            theirs.resume(number)
            for end in (ours, theirs):
                if not _ended_here(end, number):
                    end.ending.add(number)
    shuttle(ours, theirs)
    for number in streams:
        if number in reset:
            continue
        assert theirs.received[number] == sent[id(ours)][number]
        assert ours.received[number] == sent[id(theirs)][number]
        assert {number} <= ours.ended & theirs.ended
        assert number not in ours.resets
        assert number not in theirs.resets
    assert not ours.core.streams
    assert ours.budget.left == START
    assert theirs.gone is None


def _ended_here(end: Ours | Theirs, number: int) -> bool:
    if isinstance(end, Ours):
        return end.streams[number].ended_here or number not in end.core.streams
    if not _open_in_h2(end, number):
        return True
    return "LOCAL" in end.h2.streams[number].state_machine.state.name


def _open_in_h2(end: Theirs, number: int) -> bool:
    return number in end.h2.streams and not end.h2.streams[number].closed


# ---- one thing after another


@roles
def test_a_stream_from_its_opening_to_both_ends(client):
    ours, theirs = meet(client=client)
    number = opened(ours, theirs)
    assert (ours.answers if client else theirs.answers)[number] in (200, "200")
    ours.queue[number] += b"hello"
    ours.ending.add(number)
    shuttle(ours, theirs)
    assert theirs.received[number] == b"hello"
    assert number in theirs.ended
    theirs.queue[number] += b"to you" * 100_000  # the other way goes on after our end
    theirs.ending.add(number)
    shuttle(ours, theirs)
    assert ours.received[number] == b"to you" * 100_000
    assert number in ours.ended
    assert not ours.core.streams
    assert ours.core.carried == 1


@roles
@pytest.mark.parametrize("who", ["ours", "theirs"])
def test_reset(client, who):
    ours, theirs = meet(client=client)
    number = opened(ours, theirs)
    if who == "ours":
        ours.core.reset(ours.streams[number], frames.CANCEL)
        theirs.queue[number] += b"crossed it"
        wire = theirs.wire()
        shuttle(ours, theirs)
        ours.receive(wire)
        assert theirs.resets == {number: frames.CANCEL}
        assert ours.received[number] == b""
    else:
        theirs.h2.reset_stream(number, frames.NO_ERROR)
        shuttle(ours, theirs)
        assert ours.resets == {number: frames.NO_ERROR}
    assert not ours.core.streams
    assert ours.budget.left == START


@pytest.mark.parametrize("status", [400, 401, 503])
def test_an_answer_other_than_200_ends_the_stream(status):
    ours, theirs = meet(client=False)
    ours.answer = status
    number = opened(ours, theirs)
    assert theirs.answers[number] == str(status)
    assert number in theirs.ended
    assert theirs.resets[number] == frames.NO_ERROR
    assert not ours.core.streams


def test_a_refusal_seen_by_the_client():
    ours, theirs = meet()
    theirs.answer = "503"
    number = opened(ours, theirs)
    assert ours.answers[number] == 503
    assert number in ours.ended


def test_early_data_goes_before_the_answer():
    ours, _ = meet()
    number = ours.open()
    ours.queue[number] += bytes(65536)
    assert len(ours.wire()) > 65535


@roles
def test_tiny_frames_and_windows(client):
    ours, theirs = meet(client=client, settings={SettingCodes.INITIAL_WINDOW_SIZE: 1})
    number = opened(ours, theirs)
    ours.queue[number] += bytes(range(256))
    ours.ending.add(number)
    shuttle(ours, theirs, cut=1)
    assert theirs.received[number] == bytes(range(256))


def test_a_settings_change_that_makes_a_window_negative():
    ours, theirs = meet()
    number = opened(ours, theirs)
    theirs.stalled.add(number)
    ours.queue[number] += bytes(60000)
    shuttle(ours, theirs)
    theirs.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1000})
    shuttle(ours, theirs)
    assert ours.core.room(ours.streams[number], 10) < 0
    ours.queue[number] += bytes(10)
    shuttle(ours, theirs)
    assert len(theirs.received[number]) == 60000
    theirs.resume(number)
    shuttle(ours, theirs)
    assert len(theirs.received[number]) == 60010


def test_goaway_with_streams_that_were_not_looked_at():
    ours, theirs = meet()
    first, second = opened(ours, theirs), opened(ours, theirs)
    third = ours.open()
    theirs.h2.close_connection(last_stream_id=first)
    ours.receive(theirs.wire())
    assert ours.unseen == [second, third]
    assert list(ours.core.streams) == [first]
    assert ours.core.full
    assert [e.code for e in ours.events if isinstance(e, GoAway)] == [0]


def test_our_goaway_spares_open_streams_and_refuses_new_ones():
    ours, theirs = meet(client=False)
    number = opened(ours, theirs)
    crossing = theirs.open()
    ours.core.drain()
    ours.receive(theirs.wire())
    theirs.queue[number] += b"still here"
    out = ours.wire()
    assert frames.goaway(number, 0) in out
    assert frames.rst_stream(crossing, frames.REFUSED_STREAM) in out
    ours.receive(frames.header(frames.DATA, frames.END_STREAM, number, 3) + b"end")
    assert ours.received[number] == b"end"


@roles
def test_ping_both_ways(client):
    ours, theirs = meet(client=client)
    ours.core.ping()
    assert ours.core.pinged
    theirs.h2.ping(b"abcdefgh")
    shuttle(ours, theirs)
    assert not ours.core.pinged


def test_settings_say_how_many_streams_there_may_be():
    ours = Ours(client=True)
    ours.open()
    assert ours.core.full  # not more than one until the peer has spoken
    theirs = Theirs(client=False, settings={SettingCodes.MAX_CONCURRENT_STREAMS: 3})
    shuttle(ours, theirs)
    assert [e.streams for e in ours.events if isinstance(e, Settled)] == [3]
    ours.open(), ours.open()
    assert ours.core.full
    theirs.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 4})
    shuttle(ours, theirs)
    assert not ours.core.full


def test_a_peer_that_sets_no_limit():
    ours = Ours(client=True)
    ours.receive(frames.header(frames.SETTINGS, 0, 0, 0))
    assert ours.core.settled
    for _ in range(100):
        ours.open()
    assert not ours.core.full


def test_more_streams_than_offered_are_refused_one_by_one():
    ours = Ours(client=False)
    theirs = Theirs(client=True)
    theirs.h2.remote_settings.max_concurrent_streams = 2**20  # it does not care
    ours.receive(theirs.wire())
    for _ in range(MAX_STREAMS + 5):
        theirs.open()
        ours.receive(theirs.wire())
    assert len(ours.core.streams) == MAX_STREAMS
    refused = [frames.rst_stream(2 * (MAX_STREAMS + i) + 1, frames.REFUSED_STREAM) for i in range(5)]
    out = ours.wire()
    assert all(r in out for r in refused)


def test_a_long_block_in_continuations():
    ours, theirs = meet(client=False)
    theirs.h2.encoder.huffman_coder = None
    number = theirs.h2.get_next_available_stream_id()
    block = b"\x20\x02\x07CONNECT\x01\x0b10.0.0.1:80" + b"".join(
        b"\x00\x01x\x7f" + bytes([i]) + b"y" * (127 + i) for i in range(60)
    )
    wire = frames.header(frames.HEADERS, 0, number, 5) + block[:5]
    for at in range(5, len(block), 1000):
        last = frames.END_HEADERS if at + 1000 >= len(block) else 0
        piece = block[at : at + 1000]
        wire += frames.header(frames.CONTINUATION, last, number, len(piece)) + piece
    for at in range(0, len(wire), 777):
        ours.receive(wire[at : at + 777])
    assert ours.core.streams[number].answered


# ---- windows


@roles
def test_the_windows_of_streams_that_drain_grow_within_the_budget_and_give_it_back(client):
    ours, theirs = meet(client=client)
    number = opened(ours, theirs)
    for _ in range(3):
        theirs.queue[number] += bytes(8 * MAX_WINDOW)
        shuttle(ours, theirs)
    assert ours.streams[number].window == MAX_WINDOW
    assert ours.budget.left == START - (MAX_WINDOW - STREAM_WINDOW)
    ours.ending.add(number), theirs.ending.add(number)
    shuttle(ours, theirs)
    assert ours.budget.left == START


def test_no_budget_no_growth_but_still_traffic():
    budget = Budget(100)
    ours, theirs = Ours(client=False, budget=budget), Theirs(client=True)
    shuttle(ours, theirs)
    numbers = [opened(ours, theirs) for _ in range(3)]
    for number in numbers:
        theirs.queue[number] += bytes(4 * STREAM_WINDOW)
    shuttle(ours, theirs)
    assert all(len(ours.received[n]) == 4 * STREAM_WINDOW for n in numbers)
    assert budget.left == 0
    assert sum(ours.streams[n].window for n in numbers) == 3 * STREAM_WINDOW + 100
    ours.core.abandon()
    assert budget.left == 100
    assert not ours.core.streams


def test_a_stalled_stream_holds_its_window_and_no_more_and_delays_nobody():
    ours, theirs = meet(client=False)
    stalled = [opened(ours, theirs) for _ in range(20)]
    live = opened(ours, theirs)
    ours.stalled.update(stalled)
    for number in [*stalled, live]:
        theirs.queue[number] += bytes(2 * STREAM_WINDOW)
    theirs.queue[live] += bytes(CONNECTION_WINDOW)
    shuttle(ours, theirs)
    assert {ours.held[n] for n in stalled} == {STREAM_WINDOW}
    assert len(ours.received[live]) == CONNECTION_WINDOW + 2 * STREAM_WINDOW


def test_a_window_that_opens_again_is_told():
    ours, theirs = meet()
    number = opened(ours, theirs)
    theirs.stalled.add(number)
    ours.queue[number] += bytes(70000)
    shuttle(ours, theirs)
    assert len(ours.queue[number]) == 70000 - 65535
    ours.events.clear()
    theirs.resume(number)
    ours.receive(theirs.wire())
    assert any(isinstance(e, Writable) for e in ours.events)


# ---- peers that break the rules. Each: what is sent after a stream (1) was opened, and the code we answer with

GREETING = frames.header(frames.SETTINGS, 0, 0, 0)
CONNECT = b"\x02\x07CONNECT\x01\x0b10.0.0.1:80"
OPEN = frames.header(frames.HEADERS, frames.END_HEADERS, 1, len(CONNECT) + 1) + b"\x20" + CONNECT
STATUS = b"\x20\x88"


def data(stream: int, length: int, flags: int = 0) -> bytes:
    return frames.header(frames.DATA, flags, stream, length) + bytes(length)


def headers(stream: int, block: bytes, flags: int = frames.END_HEADERS) -> bytes:
    return frames.header(frames.HEADERS, flags, stream, len(block)) + block


BOTH = [
    (data(0, 1), frames.PROTOCOL_ERROR),
    (data(99, 1), frames.PROTOCOL_ERROR),
    (data(2, 1), frames.PROTOCOL_ERROR),
    (frames.rst_stream(99, 8), frames.PROTOCOL_ERROR),
    (frames.rst_stream(0, 8), frames.PROTOCOL_ERROR),
    (frames.window_update(99, 1), frames.PROTOCOL_ERROR),
    (frames.window_update(0, 0), frames.FLOW_CONTROL_ERROR),
    (frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
    (frames.header(frames.CONTINUATION, 4, 1, 0), frames.PROTOCOL_ERROR),
    (headers(1, b"", 0) + data(1, 1), frames.PROTOCOL_ERROR),
    (headers(1, b"", 0) + frames.header(frames.PING, 0, 0, 8) + bytes(8), frames.PROTOCOL_ERROR),
    (headers(1, b"", 0) + frames.header(frames.CONTINUATION, 4, 3, 0), frames.PROTOCOL_ERROR),
    (headers(1, bytes(2**14), 0) + frames.header(frames.CONTINUATION, 0, 1, 1) + b"x", frames.ENHANCE_YOUR_CALM),
    (frames.header(frames.PUSH_PROMISE, 4, 1, 4) + bytes(4), frames.PROTOCOL_ERROR),
    (frames.header(frames.RST_STREAM, 0, 1, 3) + bytes(3), frames.FRAME_SIZE_ERROR),
    (frames.header(frames.WINDOW_UPDATE, 0, 1, 3) + bytes(3), frames.FRAME_SIZE_ERROR),
    (frames.header(frames.GOAWAY, 0, 0, 7) + bytes(7), frames.FRAME_SIZE_ERROR),
    (frames.header(frames.PING, 0, 0, 7) + bytes(7), None),
    (frames.header(frames.PING, 0, 1, 8) + bytes(8), None),
    (frames.header(frames.SETTINGS, 0, 0, 5) + bytes(5), None),
    (frames.header(frames.SETTINGS, 0, 1, 0), None),
    (frames.header(frames.SETTINGS, frames.ACK, 0, 6) + bytes(6), None),
    (frames.header(frames.SETTINGS, 0, 0, 6) + b"\x00\x04\x80\x00\x00\x00", frames.FLOW_CONTROL_ERROR),
    (frames.header(frames.SETTINGS, 0, 0, 6) + b"\x00\x05\x00\x00\x00\x01", frames.PROTOCOL_ERROR),
    (headers(1, b"\xff\xff\xff\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
]
FLOODS = [
    frames.header(frames.PING, 0, 0, 8) + bytes(8),
    frames.header(frames.SETTINGS, 0, 0, 0),
    frames.header(frames.SETTINGS, frames.ACK, 0, 0),
    frames.header(frames.PRIORITY, 0, 1, 5) + bytes(5),
    frames.header(0xFA, 0, 0, 0),
    data(1, 0),
    frames.rst_stream(1, 8),
]


def started(*, client: bool) -> Ours:
    ours = Ours(client=client)
    if client:
        ours.receive(GREETING)
        ours.open()
    else:
        ours.receive(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + GREETING + OPEN)
    assert list(ours.core.streams) == [1]
    ours.stalled.add(1)
    ours.wire()
    return ours


def feed(ours: Ours, wire: bytes, cut: int) -> None:
    for at in range(0, len(wire), cut):
        ours.receive(wire[at : at + cut])


def refused(ours: Ours, wire: bytes, code: int | None) -> None:
    with pytest.raises(CoreError) as caught:
        feed(ours, wire, 2**16)
    assert code in (None, caught.value.code)
    goodbye = bytes(ours.core.outgoing)
    where = goodbye.rindex(frames.header(frames.GOAWAY, 0, 0, 0)[3:])
    assert goodbye[where + 6 + 4 :][:4] == caught.value.code.to_bytes(4, "big")


@roles
@pytest.mark.parametrize(("wire", "code"), BOTH)
def test_a_broken_rule_ends_the_tunnel(client, wire, code):
    refused(started(client=client), wire, code)


@roles
@pytest.mark.parametrize("wire", FLOODS)
def test_floods(client, wire):
    ours = started(client=client)
    for _ in range(3):
        ours.receive(wire * 9000)  # a lively peer, over three seconds
        ours.core.tick()
    refused(ours, wire * 10_001, frames.ENHANCE_YOUR_CALM)
    assert len(ours.core.outgoing) < 2**20


def test_settings_count_for_every_stream_they_move():
    ours = started(client=False)
    ours.receive(b"".join(headers(n, CONNECT) for n in range(3, 1003, 2)))
    wire = b"".join(frames.header(frames.SETTINGS, 0, 0, 6) + b"\x00\x04" + struct.pack("!L", n) for n in range(1, 100))
    refused(ours, wire, frames.ENHANCE_YOUR_CALM)


def test_settings_that_nobody_knows_are_not_kept():
    ours = started(client=False)
    for first in range(0x100, 2**16, 2**8):
        known = b"\x00\x05" + struct.pack("!L", 2**15)
        body = known + b"".join(struct.pack("!HL", code, 1) for code in range(first, first + 2**8))
        ours.receive(frames.header(frames.SETTINGS, 0, 0, len(body)) + body)
        assert ours.core.max_frame == 2**15
        ours.core.tick()
    assert len(ours.core._negotiation._h2.remote_settings) < 10


def test_a_continuation_flood():
    refused(
        started(client=False),
        headers(3, b"", 0) + frames.header(frames.CONTINUATION, 0, 3, 0) * 20_000,
        frames.ENHANCE_YOUR_CALM,
    )


def test_rapid_reset():
    ours = started(client=False)
    wire = b"".join(headers(n, CONNECT) + frames.rst_stream(n, 8) for n in range(3, 40_003, 2))
    refused(ours, wire, frames.ENHANCE_YOUR_CALM)
    assert len(ours.core.streams) <= 2
    assert ours.budget.left == START


def test_more_data_than_the_connection_window():
    """In one read: without looking up from it we can give no credit back."""
    ours = started(client=False)
    for n in range(3, 203, 2):
        ours.receive(headers(n, CONNECT))
    wire = b"".join(data(n, STREAM_WINDOW) for n in range(3, 203, 2))
    with pytest.raises(CoreError) as caught:
        ours.core.receive(memoryview(wire))
    assert caught.value.code == frames.FLOW_CONTROL_ERROR


SERVER = [
    (headers(2, CONNECT), frames.PROTOCOL_ERROR),
    (headers(0, CONNECT), frames.PROTOCOL_ERROR),
]


@pytest.mark.parametrize(("wire", "code"), SERVER)
def test_a_client_that_opens_what_it_may_not(wire, code):
    refused(started(client=False), wire, code)


@pytest.mark.parametrize("wire", [headers(2, STATUS), headers(0, STATUS), headers(3, STATUS)])
def test_a_server_that_opens_streams(wire):
    refused(started(client=True), wire, frames.PROTOCOL_ERROR)


def test_an_answer_without_a_status_or_that_ends_early():
    refused(started(client=True), headers(1, b"\x20\x00\x01x\x01y"), frames.PROTOCOL_ERROR)
    early = b"\x20\x08\x03103"
    refused(started(client=True), headers(1, early, frames.END_HEADERS | frames.END_STREAM), frames.PROTOCOL_ERROR)


@roles
def test_more_data_than_the_window_of_its_stream(client):
    wire = (headers(1, STATUS) if client else b"") + data(1, STREAM_WINDOW + 1)
    refused(started(client=client), wire, frames.FLOW_CONTROL_ERROR)


@pytest.mark.parametrize("cut", [1, 2**16])
@pytest.mark.parametrize(
    "wire", [data(1, 5), data(1, 0), data(1, 0, frames.END_STREAM), data(1, 3, frames.PADDED | frames.END_STREAM)]
)
def test_data_before_the_answer_resets_its_stream_and_no_other(wire, cut):
    ours = started(client=True)
    other = ours.open()
    feed(ours, wire + headers(1, STATUS) + headers(other, b"\x88") + data(other, 5), cut)
    assert [e.code for e in ours.events if isinstance(e, Reset)] == [frames.PROTOCOL_ERROR]
    assert not [e for e in ours.events if isinstance(e, Ended)]
    assert {e.stream.id for e in ours.events if isinstance(e, Answered)} == {other}
    assert (ours.received[1], ours.received[other]) == (b"", bytes(5))
    assert list(ours.core.streams) == [other]
    assert frames.rst_stream(1, frames.PROTOCOL_ERROR) in ours.wire()


def test_interim_answers_are_passed_over():
    ours = started(client=True)
    ours.receive(headers(1, b"\x20\x08\x03103") + headers(1, b"\x88"))
    assert [e.status for e in ours.events if isinstance(e, Answered)] == [200]


@pytest.mark.parametrize("block", [b"\x88", b"\x00\x01x\x01y"])
@pytest.mark.parametrize("flags", [frames.END_HEADERS, frames.END_HEADERS | frames.END_STREAM])
def test_trailers_end_their_stream_and_no_other(block, flags):
    """A stock peer may send them; RFC 9113 makes it an error of the stream."""
    for client in (True, False):
        ours = started(client=client)
        other = ours.open() if client else 3
        ours.receive(headers(1, STATUS) + headers(3, b"\x88") if client else headers(3, CONNECT))
        ours.wire()
        ours.receive(headers(1, block, flags))
        assert ours.resets == {1: frames.PROTOCOL_ERROR}
        assert frames.rst_stream(1, frames.PROTOCOL_ERROR) in ours.wire()
        assert list(ours.core.streams) == [other]
        ours.receive(headers(1, block, flags))  # and again, for it is forgotten


def test_zero_and_too_much_credit_end_their_stream_only():
    for credit in (0, 2**31 - 1):
        ours = started(client=False)
        ours.receive(frames.window_update(1, credit))
        assert ours.resets == {1: frames.FLOW_CONTROL_ERROR}
        ours.receive(headers(3, CONNECT))
        assert list(ours.core.streams) == [3]


def test_settings_that_push_a_window_out_of_bounds():
    ours = started(client=False)
    ours.receive(frames.window_update(1, 2**31 - 1 - 65535))
    refused(
        ours,
        frames.header(frames.SETTINGS, 0, 0, 6) + b"\x00\x04" + (2**31 - 1).to_bytes(4, "big"),
        frames.FLOW_CONTROL_ERROR,
    )


@roles
def test_frames_for_a_forgotten_stream_are_passed_over_but_counted(client):
    ours = started(client=client)
    ours.core.reset(ours.streams[1])
    ours.wire()
    ours.receive(headers(1, STATUS))
    ours.receive(frames.window_update(1, 1) + frames.rst_stream(1, 8))
    for _ in range(300):
        ours.receive(data(1, 2**14))  # far more than the stream's window
    assert not ours.received[1]
    out, credit = ours.wire(), 0
    while out:
        assert out[3:9] == frames.header(frames.WINDOW_UPDATE, 0, 0, 4)[3:]
        credit, out = credit + frames.word(out[9:13]), out[13:]
    assert credit > 300 * 2**14 - CONNECTION_WINDOW // 8


def test_what_came_before_a_broken_rule_is_not_lost():
    ours = started(client=False)
    ours.core.end(ours.streams[1])
    with pytest.raises(CoreError) as caught:
        ours.core.receive(memoryview(data(1, 5, frames.END_STREAM) + data(99, 1)))
    assert [type(e).__name__ for e in caught.value.events] == ["Data", "Ended"]
    assert not ours.core.streams


PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.mark.parametrize("text", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/1.0\r\n\r\nSM\r\n\r\n", b"\x00" * 24])
def test_no_preface(text):
    for cut in (1, 1000):
        ours = Ours(client=False)
        with pytest.raises(ProtocolError):
            feed(ours, text, cut)


def test_the_preface_byte_by_byte():
    ours = Ours(client=False)
    for byte in PREFACE + GREETING + OPEN:
        ours.receive(bytes([byte]))
    assert ours.core.streams[1].answered


kinds = st.sampled_from([*range(10), 0xFA])
framed = st.builds(
    lambda kind, flags, stream, body: frames.header(kind, flags, stream, len(body)) + body,
    kinds,
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 255]),
    st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1]),
    st.one_of(st.binary(max_size=30), st.just(b"\x88"), st.just(bytes(4)), st.just(bytes(8)), st.just(OPEN[9:])),
)


@settings(max_examples=int(300 * EFFORT))
@given(st.booleans(), st.lists(st.one_of(framed, framed, framed, st.binary(max_size=20)), max_size=20), st.booleans())
def test_hostile_bytes_never_raise_anything_else(client, pieces, whole):
    ours = started(client=client)
    wire = b"".join(pieces)
    try:
        for piece in [wire] if whole else pieces:
            ours.receive(piece)
            ours.wire()
    except ProtocolError:
        pass
    ours.core.abandon()
    assert ours.budget.left == START


@settings(max_examples=int(100 * EFFORT))
@given(st.booleans(), st.binary(max_size=200))
def test_arbitrary_bytes_after_the_greeting(client, noise):
    ours = Ours(client=client)
    try:
        ours.receive((b"" if client else PREFACE) + noise)
    except ProtocolError:
        assert ours.core.outgoing


def test_the_ask_arrives_as_it_was_written():
    client, server = Ours(client=True), Ours(client=False)
    server.receive(client.wire())
    client.receive(server.wire())
    client.open()
    server.receive(client.wire())
    assert [e.ask for e in server.events if hasattr(e, "ask")] == [ASK]
    with pytest.raises(h2.exceptions.ProtocolError):  # and h2 would not take just anything either
        Theirs(client=False).receive(b"GET / HTTP/1.1\r\n\r\n")
