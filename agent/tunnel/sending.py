"""What one end of a tunnel says: the streams it opens, answers and ends, and the credit it gives. Pure."""

from agent.tunnel import frames
from agent.tunnel.headers import BlockWriter, Connect
from agent.tunnel.stream import MAX_WINDOW, STREAM_WINDOW, Budget, Stream

INITIAL_WINDOW = 65535
"""Every window before SETTINGS or WINDOW_UPDATE say otherwise."""


class Sending:
    """The half of a Core that others act on; what arrives is the Core's own."""

    def __init__(self, *, client: bool, written: dict[tuple[str, str], bytes], budget: Budget) -> None:
        self.client = client
        self.outgoing = bytearray()
        self.streams: dict[int, Stream] = {}
        self.max_frame = 2**14
        self.max_streams = 1  # until the peer says so: it may allow no more, and says so within a round trip
        self.draining = False
        self.carried = 0
        self.send_window = INITIAL_WINDOW
        self._writer, self._budget = BlockWriter(written), budget
        self._initial_send_window = INITIAL_WINDOW
        self._last_id = -1 if client else 0  # the highest stream opened

    @property
    def full(self) -> bool:
        """Whether no stream can be opened now."""
        return self.draining or len(self.streams) >= self.max_streams or self._last_id > 2**31 - 4

    @property
    def filling(self) -> bool:
        """Whether an eighth or less of its streams are left; never of one that carries but a few."""
        return self.max_streams >= 8 and len(self.streams) * 8 >= self.max_streams * 7

    def open(self, ask: Connect) -> Stream:
        """Ask the peer to connect; the caller has looked at `full`. DATA may follow at once."""
        self._last_id += 2
        stream = self._add(self._last_id)
        stream.recv_window = -1  # nothing may come before the answer
        self._headers(stream.id, self._writer.connect(ask), 0)
        return stream

    def answer(self, stream: Stream, status: int) -> None:
        """200 opens the stream, anything else ends it."""
        if stream.answered or stream.id not in self.streams:
            return
        stream.answered = True
        if status == 200:
            self._headers(stream.id, self._writer.status(status), 0)
            return
        self._headers(stream.id, self._writer.status(status), frames.END_STREAM)
        if not stream.ended_there:  # a complete answer before a complete request: RFC 9113, section 8.1
            self.outgoing += frames.rst_stream(stream.id, frames.NO_ERROR)
        self._forget(stream)

    def room(self, stream: Stream, most: int) -> int:
        """Bytes, of `most`, that may go into one DATA frame now."""
        # As `min` would have it, in a third of its time: every piece of every connection comes by here.
        if stream.send_window < most:
            most = stream.send_window
        if self.send_window < most:
            most = self.send_window
        return self.max_frame if self.max_frame < most else most

    def sent_data(self, stream: Stream, length: int) -> None:
        """A DATA frame with so many bytes was placed."""
        stream.send_window -= length
        self.send_window -= length

    def end(self, stream: Stream) -> None:
        """Nothing more will be sent on the stream."""
        if stream.ended_here or stream.id not in self.streams:
            return
        stream.ended_here = True
        self.outgoing += frames.header(frames.DATA, frames.END_STREAM, stream.id, 0)
        if stream.ended_there:
            self._forget(stream)

    def reset(self, stream: Stream, code: int = frames.CANCEL) -> None:
        """End the stream at once, both ways."""
        if self.streams.get(stream.id) is stream:
            self.outgoing += frames.rst_stream(stream.id, code)
            self._forget(stream)

    def delivered(self, stream: Stream, length: int) -> None:
        """So many bytes of the stream have left our memory: give the peer credit for them, in good time."""
        stream.owed += length
        if stream.owed * 2 < stream.window or stream.ended_there or stream.id not in self.streams:
            return
        credit = stream.owed
        grow = min(stream.window, MAX_WINDOW - stream.window, self._budget.left)
        # Everything that arrived has been delivered: the window is what holds the sender up.
        if grow > 0 and stream.recv_window + stream.owed == stream.window:
            self._budget.left -= grow
            stream.window += grow
            credit += grow
        stream.owed = 0
        stream.recv_window += credit
        self.outgoing += frames.window_update(stream.id, credit)

    def abandon(self) -> list[Stream]:
        """The tunnel is gone: forget the streams that were open, and return them."""
        streams = list(self.streams.values())
        for stream in streams:
            self._forget(stream)
        return streams

    def drain(self, code: int = frames.NO_ERROR, why: str = "") -> None:
        """Take no new streams; those open go on."""
        if not self.draining or code:
            self.draining = True
            self.outgoing += frames.goaway(max(self._last_id, 0) if not self.client else 0, code, why)

    def _add(self, number: int) -> Stream:
        stream = self.streams[number] = Stream(number, self._initial_send_window)
        self.carried += 1
        return stream

    def _forget(self, stream: Stream) -> None:
        del self.streams[stream.id]
        self._budget.left += stream.window - STREAM_WINDOW

    def _headers(self, number: int, block: bytes, flags: int) -> None:
        # One frame: our blocks are some hundred bytes, and no peer may allow less than 16 KiB.
        self.outgoing += frames.header(frames.HEADERS, frames.END_HEADERS | flags, number, len(block)) + block
