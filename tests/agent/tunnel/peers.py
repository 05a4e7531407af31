"""The two ends of a tunnel in memory: our core, driven as a link drives it, and h2 as the independent peer."""

import contextlib
from collections import deque

import h2.config
import h2.connection
import h2.events
import h2.exceptions
from h2.settings import SettingCodes

from agent.tunnel import frames
from agent.tunnel.core import Core
from agent.tunnel.headers import Connect
from agent.tunnel.stream import Answered, Asked, Budget, Data, Ended, Event, GoAway, Reset, Stream

ASK = Connect("10.0.0.1:80", "service.name=web", 'for="10.0.0.2:4711"')


class Ours:
    """A core and the bytes queued for its streams. `stalled` streams deliver nothing; their bytes wait in `held`."""

    def __init__(self, *, client: bool, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.core = Core(client=client, written={}, read={}, budget=self.budget)
        self.events: list[Event] = []
        self.streams: dict[int, Stream] = {}
        self.queue: dict[int, bytearray] = {}
        self.ending: set[int] = set()
        self.received: dict[int, bytearray] = {}
        self.held: dict[int, int] = {}
        self.ended: set[int] = set()
        self.answers: dict[int, int] = {}
        self.resets: dict[int, int] = {}
        self.unseen: list[int] = []
        self.stalled: set[int] = set()
        self.answer = 200

    def open(self) -> int:
        stream = self.core.open(ASK)
        self._adopt(stream)
        return stream.id

    def _adopt(self, stream: Stream) -> None:
        stream.owner = self
        self.streams[stream.id] = stream
        self.queue[stream.id], self.received[stream.id], self.held[stream.id] = bytearray(), bytearray(), 0

    def resume(self, number: int) -> None:
        self.stalled.discard(number)
        held, self.held[number] = self.held.get(number, 0), 0
        if held:
            self.core.delivered(self.streams[number], held)

    def wire(self) -> bytes:
        """What goes to the peer now: the core's frames, and DATA as far as there is room."""
        out = bytearray()
        for number, queue in self.queue.items():
            stream = self.streams[number]
            while queue and number in self.core.streams and (room := self.core.room(stream, len(queue))) > 0:
                out += self.core.outgoing
                self.core.outgoing.clear()
                piece = queue[:room]
                del queue[:room]
                out += frames.header(frames.DATA, 0, number, len(piece)) + piece
                self.core.sent_data(stream, len(piece))
            if not queue and number in self.ending:
                self.ending.discard(number)
                self.core.end(stream)
        out += self.core.outgoing
        self.core.outgoing.clear()
        return bytes(out)

    def receive(self, data: bytes) -> None:
        for event in self.core.receive(memoryview(bytearray(data))):
            self.events.append(event)
            match event:
                case Asked(stream, ask, _):
                    self._adopt(stream)
                    self.core.answer(stream, self.answer if ask else 400)
                case Data(stream, payload):
                    self.received[stream.id] += payload
                    if stream.id in self.stalled:
                        self.held[stream.id] += len(payload)
                    else:
                        self.core.delivered(stream, len(payload))
                case Ended(stream):
                    assert stream.id not in self.ended
                    self.ended.add(stream.id)
                case Answered(stream, status):
                    self.answers[stream.id] = status
                case Reset(stream, code):
                    self.resets[stream.id] = code
                case GoAway(_, unseen):
                    self.unseen += [s.id for s in unseen]


class Theirs:
    """An h2 connection with queues of its own."""

    def __init__(self, *, client: bool, settings: dict[SettingCodes, int] | None = None) -> None:
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=client, header_encoding="utf-8", validate_inbound_headers=True)
        )
        self.h2.local_settings.update(settings or {})
        if settings:
            self.h2.local_settings.acknowledge()
        self.h2.initiate_connection()
        self.queue: dict[int, bytearray] = {}
        self.ending: set[int] = set()
        self.received: dict[int, bytearray] = {}
        self.held: deque[tuple[int, int]] = deque()
        self.ended: set[int] = set()
        self.answers: dict[int, str] = {}
        self.resets: dict[int, int] = {}
        self.stalled: set[int] = set()
        self.gone: h2.events.ConnectionTerminated | None = None
        self.answer = "200"

    def open(self) -> int:
        number = self.h2.get_next_available_stream_id()
        self.h2.send_headers(number, [(":method", "CONNECT"), (":authority", ASK.authority), ("baggage", "a=b")])
        self.queue[number], self.received[number] = bytearray(), bytearray()
        return number

    def resume(self, number: int) -> None:
        self.stalled.discard(number)
        held, self.held = self.held, deque()
        for stream, length in held:
            if stream == number:
                self._credit(length, stream)
            else:
                self.held.append((stream, length))

    def _credit(self, length: int, number: int) -> None:
        if length:
            self.h2.acknowledge_received_data(length, number)

    def wire(self) -> bytes:
        out = bytearray(self.h2.data_to_send())
        for number, queue in self.queue.items():
            if number in self.resets:
                queue.clear()
                self.ending.discard(number)
            while queue and (room := min(self.h2.local_flow_control_window(number), 2**14)) > 0:
                piece = bytes(queue[:room])
                del queue[:room]
                self.h2.send_data(number, piece, pad_length=len(piece) % 7 if room > len(piece) + 8 else None)
                out += self.h2.data_to_send()
            if not queue and number in self.ending:
                self.ending.discard(number)
                self.h2.end_stream(number)
        return bytes(out + self.h2.data_to_send())

    def receive(self, data: bytes) -> None:
        # h2 acts on our acknowledgement of a larger frame size with the next read only, and would complain of this one.
        self.h2.max_inbound_frame_size = frames.MAX_FRAME
        for event in self.h2.receive_data(data):
            match event:
                case h2.events.RequestReceived():
                    assert dict(event.headers)[":authority"] == ASK.authority
                    self.queue[event.stream_id], self.received[event.stream_id] = bytearray(), bytearray()
                    with contextlib.suppress(
                        h2.exceptions.StreamClosedError, h2.exceptions.StreamIDTooLowError
                    ):  # it was reset in the same breath
                        self.h2.send_headers(
                            event.stream_id, [(":status", self.answer)], end_stream=self.answer != "200"
                        )
                case h2.events.ResponseReceived():
                    self.answers[event.stream_id] = dict(event.headers)[":status"]
                case h2.events.DataReceived():
                    self.received[event.stream_id] += event.data
                    if event.stream_id in self.stalled:
                        self.held.append((event.stream_id, event.flow_controlled_length))
                    else:
                        self._credit(event.flow_controlled_length, event.stream_id)
                case h2.events.StreamEnded():
                    self.ended.add(event.stream_id)
                case h2.events.StreamReset():
                    self.resets[event.stream_id] = event.error_code
                case h2.events.ConnectionTerminated():
                    self.gone = event


def shuttle(ours: Ours, theirs: Theirs, cut: int = 2**30) -> None:
    """Carry bytes both ways, in pieces of at most `cut`, until nothing moves."""
    moved = True
    while moved:
        moved = False
        for one, other in ((ours, theirs), (theirs, ours)):
            wire = one.wire()
            for at in range(0, len(wire), cut):
                moved = True
                other.receive(wire[at : at + cut])
