"""One HTTP/2 connection that carries nothing but CONNECT streams (RFC 9113). Pure; handles hostile bytes.

Who does what: h2 negotiates the connection (preface, SETTINGS and their acknowledgement, PING); streams, flow control
and GOAWAY are ours, because that is where the cost of a mesh lies, and because h2 cannot open a stream for less than a
hundred microseconds. The core never sees the bytes of a DATA frame it sends: the caller asks for `room`, reads from its
socket straight into a batch behind nine free bytes, and says `sent_data`.

    outgoing        frames to be sent, in order. The caller moves them out before it places DATA, and when it flushes
    receive(data)   -> events, whose payloads are slices of `data`

Windows. The connection's credit is returned on receipt, so that a stalled stream never holds up its neighbours;
a stream's credit on delivery (`delivered`), so that a stream holds at most its window here. A window that drains
promptly grows from STREAM_WINDOW to MAX_WINDOW, as far as the worker-wide Budget goes.

States of a stream, each way for itself: open -> ended (END_STREAM) -> forgotten when both ways are. RST_STREAM forgets
it at once. Frames for forgotten streams count for the connection's window and are otherwise ignored (RFC 9113, 5.1).

| from the peer          | stream known      | forgotten | never opened          |
| HEADERS                | answer, or reset  | ignored   | server: opens         |
| DATA                   | Data, Ended (1)   | credit    | connection error      |
| RST_STREAM             | Reset             | ignored   | connection error      |
| WINDOW_UPDATE          | Writable          | ignored   | connection error      |

(1) Before the answer, by which alone a stream is opened, it is reset (RFC 9113, 8.1). Until then its window is below 0.
"""

from collections.abc import Iterator
from functools import partial

from h2.settings import SettingCodes

from agent.tunnel import frames
from agent.tunnel.frames import Frame, ProtocolError, Splitter
from agent.tunnel.headers import BlockReader, Connect, HeaderError
from agent.tunnel.negotiation import MAX_STREAMS, Negotiation
from agent.tunnel.sending import INITIAL_WINDOW, Sending
from agent.tunnel.stream import (
    Answered,
    Asked,
    Budget,
    Data,
    Ended,
    Event,
    GoAway,
    Reset,
    Settled,
    Stream,
    Writable,
)

CONNECTION_WINDOW = 2**24
_WINDOW_LIMIT = 2**31 - 1
_HEADER, _STREAM = frames.HEADER_SIZE, 0x7FFFFFFF
_DATA, _HEADERS, _PADDED, _END = frames.DATA, frames.HEADERS, frames.PADDED, frames.END_STREAM
_WHOLE = frames.END_HEADERS | frames.PADDED | frames.WITH_PRIORITY
_data = partial(tuple.__new__, Data)  # a NamedTuple's own way takes twice as long
CALM = 10_000
"""Frames that cost us and carry nothing (PING, SETTINGS, empty DATA, RST_STREAM) a peer may send between two ticks."""


class CoreError(ProtocolError):
    """The tunnel is lost; `events` happened before that."""

    def __init__(self, code: int, message: str, events: list[Event]) -> None:
        super().__init__(code, message)
        self.events = events


class Core(Sending):
    """One end of a tunnel. `client` opens streams, the other answers them.

    CoreError from `receive`: act on its `events`, which came before; send `outgoing`, which holds the GOAWAY; close.
    """

    def __init__(
        self, *, client: bool, written: dict[tuple[str, str], bytes], read: dict[bytes, Connect], budget: Budget
    ) -> None:
        """`written` and `read` are header block caches, shared by all cores of a worker as is `budget`."""
        super().__init__(client=client, written=written, budget=budget)
        self.settled = False
        self.pinged = False
        self._reader, self._splitter = BlockReader(read), Splitter()
        self._received = 0  # bytes for which the connection owes credit
        self._block: tuple[int, int, bytearray] | None = None  # HEADERS that CONTINUATION goes on
        self._idle_frames = 0
        self._negotiation = Negotiation(client=client)
        self.outgoing += self._negotiation.said
        self.outgoing += frames.window_update(0, CONNECTION_WINDOW - INITIAL_WINDOW)

    def ping(self) -> None:
        """Ask for a sign of life; `pinged` until it comes."""
        self.pinged = True
        self._negotiation.ping()
        self.outgoing += self._negotiation.said

    def tick(self) -> None:
        """Time passes: a peer may be as restless again as CALM allows."""
        self._idle_frames = 0

    # ---- receiving

    def receive(self, data: memoryview) -> list[Event]:
        """Act on what the peer sent; raises CoreError."""
        events: list[Event] = []
        try:
            if not self._negotiation.greeted:
                data = self._negotiation.greet(data)
            received = self._received
            if self._block is None and not self._splitter.within:
                data = data[self._whole(data, events) :]
            for frame in self._splitter.feed(data) if data else ():
                if frame.type == frames.DATA and self._block is None:
                    self._data(frame, events)
                else:
                    events.extend(self._control(frame))
            if self._received != received and self._received * 16 >= CONNECTION_WINDOW:
                self.outgoing += frames.window_update(0, self._received)
                self._received = 0
        except ProtocolError as error:
            self.drain(error.code or frames.PROTOCOL_ERROR, str(error))
            raise CoreError(error.code, str(error), events) from error
        return events

    def _whole(self, data: memoryview, events: list[Event]) -> int:
        """Act on the whole, plain DATA and HEADERS frames that `data` begins with; -> their length. What nearly all
        arrivals are made of goes this short way; anything else is left to the splitter, and comes to the same."""
        at, last, streams, unpack = 0, len(data) - _HEADER, self.streams, frames.unpack_header
        while at <= last:
            high, low, kind, flags, number = unpack(data, at)
            length = high << 8 | low
            if length > last - at:
                break
            begin = at + _HEADER
            if kind == _DATA and not flags & _PADDED:
                stream = streams.get(number & _STREAM)
                if stream is None or stream.ended_there or stream.recv_window < length:
                    break
                if length:
                    stream.recv_window -= length
                    self._received += length
                    events.append(_data((stream, data[begin : begin + length])))
                elif not flags & _END:
                    break
                if flags & _END:
                    self._ended(stream, events)
            elif kind == _HEADERS and flags & _WHOLE == frames.END_HEADERS and length <= frames.MAX_CONTROL:
                events.extend(self._whole_block(number & _STREAM, flags, bytes(data[begin : begin + length])))
            else:
                break
            at = begin + length
        if self._received > CONNECTION_WINDOW:
            raise ProtocolError(frames.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        return at

    def _data(self, frame: Frame, events: list[Event]) -> None:
        self._received += frame.credit
        if self._received > CONNECTION_WINDOW:
            raise ProtocolError(frames.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        stream = self.streams.get(frame.stream)
        if stream is None or stream.ended_there:
            self._known(frame.stream)
            self._restless(not frame.credit)
            return
        if self.client and not stream.answered:
            self._restless()
            self.reset(stream, frames.PROTOCOL_ERROR)
            events.append(Reset(stream, frames.PROTOCOL_ERROR))
            return
        stream.recv_window -= frame.credit
        if stream.recv_window < 0:
            raise ProtocolError(frames.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        if frame.payload:
            events.append(Data(stream, frame.payload))
        if (padding := frame.credit - len(frame.payload)) > 0:
            self.delivered(stream, padding)
        if frame.flags & frames.END_STREAM:
            self._ended(stream, events)
        else:
            self._restless(not frame.credit)

    def _ended(self, stream: Stream, events: list[Event]) -> None:
        stream.ended_there = True
        events.append(Ended(stream))
        if stream.ended_here:
            self._forget(stream)

    def _control(self, frame: Frame) -> Iterator[Event]:
        if self._block is not None and (frame.type != frames.CONTINUATION or frame.stream != self._block[0]):
            raise ProtocolError(frames.PROTOCOL_ERROR, "a header block that is not continued")
        match frame.type:
            case frames.HEADERS:
                if frame.flags & frames.END_HEADERS:
                    yield from self._whole_block(frame.stream, frame.flags, bytes(frame.payload))
                else:
                    self._block = (frame.stream, frame.flags, bytearray(frame.payload))
            case frames.CONTINUATION:
                if self._block is None:
                    raise ProtocolError(frames.PROTOCOL_ERROR, "CONTINUATION of nothing")
                self._block[2].extend(frame.payload)
                self._restless(not frame.payload)
                if len(self._block[2]) > frames.MAX_CONTROL:
                    raise ProtocolError(frames.ENHANCE_YOUR_CALM, "a header block of more than 16 KiB")
                if frame.flags & frames.END_HEADERS:
                    number, flags, fragment = self._block
                    self._block = None
                    yield from self._whole_block(number, flags, bytes(fragment))
            case frames.WINDOW_UPDATE:
                yield from self._credit(frame)
            case frames.RST_STREAM:
                self._restless()
                code = frames.word(frame.payload)
                stream = self.streams.get(frame.stream)
                if stream is None:
                    self._known(frame.stream)
                else:
                    self._forget(stream)
                    yield Reset(stream, code)
            case frames.GOAWAY:
                yield self._gone(frame)
            case frames.SETTINGS | frames.PING:
                self._restless()
                yield from self._negotiate(frame)
            case frames.PUSH_PROMISE:
                raise ProtocolError(frames.PROTOCOL_ERROR, "PUSH_PROMISE though push is off")
            case _:
                self._restless()  # PRIORITY and unknown frames are to be ignored

    def _whole_block(self, number: int, flags: int, block: bytes) -> Iterator[Event]:
        stream = self.streams.get(number)
        if stream is None and (self.client or number <= self._last_id):
            self._known(number)
            self._reader.skip(block)  # it crossed our RST_STREAM
            return
        if stream is not None and (stream.answered or not self.client):
            # Trailers, or a second answer, have no place on a CONNECT stream (RFC 9113, section 8.5).
            self._reader.skip(block)
            self.reset(stream, frames.PROTOCOL_ERROR)
            yield Reset(stream, frames.PROTOCOL_ERROR)
            return
        if stream is not None:
            status = self._reader.status(block)
            if status < 200:
                self._restless()
                if flags & frames.END_STREAM:
                    raise ProtocolError(frames.PROTOCOL_ERROR, f"an answer that ends with {status}")
                return
            stream.answered, stream.recv_window = True, stream.window
            yield Answered(stream, status)
            if flags & frames.END_STREAM and number in self.streams:
                events: list[Event] = []
                self._ended(stream, events)
                yield from events
            return
        if number % 2 == 0:
            raise ProtocolError(frames.PROTOCOL_ERROR, f"a client opened stream {number}")
        self._last_id = number
        try:
            ask, reason = self._reader.connect(block), ""
        except HeaderError as error:
            ask, reason = None, str(error)
        if len(self.streams) >= MAX_STREAMS or self.draining:
            self.outgoing += frames.rst_stream(number, frames.REFUSED_STREAM)
            self._restless()
            return
        stream = self._add(number)
        stream.ended_there = bool(flags & frames.END_STREAM)
        yield Asked(stream, ask, reason)
        if stream.ended_there:
            yield Ended(stream)

    def _credit(self, frame: Frame) -> Iterator[Event]:
        credit = frames.word(frame.payload) & 0x7FFFFFFF
        if frame.stream == 0:
            self.send_window += credit
            if not credit or self.send_window > _WINDOW_LIMIT:
                raise ProtocolError(frames.FLOW_CONTROL_ERROR, "a connection window out of bounds")
            if self.send_window <= credit:
                yield Writable(None)
            return
        stream = self.streams.get(frame.stream)
        if stream is None:
            self._known(frame.stream)
            return
        was = stream.send_window
        stream.send_window += credit
        if not credit or stream.send_window > _WINDOW_LIMIT:
            self.reset(stream, frames.FLOW_CONTROL_ERROR)
            yield Reset(stream, frames.FLOW_CONTROL_ERROR)
        elif was <= 0:
            yield Writable(stream)

    def _gone(self, frame: Frame) -> GoAway:
        last, code = frames.word(frame.payload) & 0x7FFFFFFF, frames.word(frame.payload, 4)
        self.draining = True
        unseen = tuple(s for s in self.streams.values() if self.client and s.id > last)
        for stream in unseen:
            self._forget(stream)
        return GoAway(code, unseen)

    def _negotiate(self, frame: Frame) -> Iterator[Event]:
        heard = self._negotiation.hear(frame.raw)
        self.outgoing += self._negotiation.said
        if heard.alive:
            self.pinged = False
        if heard.acknowledged:
            self._reader.settle()
        if heard.changed is not None:
            yield from self._settle(heard.changed)

    def _settle(self, changed: dict[int, int]) -> Iterator[Event]:
        self.max_frame = changed.get(SettingCodes.MAX_FRAME_SIZE, self.max_frame)
        self.max_streams = changed.get(
            SettingCodes.MAX_CONCURRENT_STREAMS, self.max_streams if self.settled else MAX_STREAMS
        )
        self.settled = True
        initial = changed.get(SettingCodes.INITIAL_WINDOW_SIZE)
        if initial is not None:
            self._restless(len(self.streams))  # the work that a few bytes of the peer make here
            more, self._initial_send_window = initial - self._initial_send_window, initial
            for stream in self.streams.values():
                stream.send_window += more
                if stream.send_window > _WINDOW_LIMIT:
                    raise ProtocolError(frames.FLOW_CONTROL_ERROR, "settings that push a window out of bounds")
                if 0 < stream.send_window <= more:
                    yield Writable(stream)
        yield Settled(self.max_streams)

    def _known(self, number: int) -> None:
        """A frame for a stream that is not there is fine if it once was."""
        if number == 0 or number > self._last_id or (number % 2 == 0):
            raise ProtocolError(frames.PROTOCOL_ERROR, f"a frame for stream {number}, which was never opened")

    def _restless(self, counts: int = 1) -> None:
        self._idle_frames += counts
        if self._idle_frames > CALM:
            raise ProtocolError(frames.ENHANCE_YOUR_CALM, "too many frames that carry nothing")
