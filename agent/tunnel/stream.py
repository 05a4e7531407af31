"""A CONNECT stream, and what can happen on a tunnel. Values; `core` makes them."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from agent.tunnel.headers import Connect

STREAM_WINDOW = 2**18
"""Bytes a stream may have under way at first: enough for 2 Gbit/s at 1 ms, and little enough for a thousand stalled."""
MAX_WINDOW = 2**22
"""Bytes to which the window of a stream that drains grows: 3 Gbit/s at 10 ms."""


@dataclass(slots=True)
class Budget:
    """Bytes by which stream windows may still grow, for all the tunnels of a worker: what stalled readers may hold of
    its memory beyond STREAM_WINDOW each."""

    left: int = 2**26


class Stream:
    """One CONNECT stream. `owner` is the caller's own."""

    __slots__ = ("answered", "ended_here", "ended_there", "id", "owed", "owner", "recv_window", "send_window", "window")

    def __init__(self, number: int, send_window: int) -> None:
        self.id = number
        self.owner: Any = None
        self.send_window = send_window
        self.window = STREAM_WINDOW  # what we let the peer have under way
        self.recv_window = STREAM_WINDOW  # what of it is left
        self.owed = 0  # delivered, but not yet told the peer
        self.answered = False
        self.ended_here = False
        self.ended_there = False


class Asked(NamedTuple):
    """A peer opened a stream. `ask` is None, with the reason, where the request is none that can be served (400)."""

    stream: Stream
    ask: Connect | None
    reason: str = ""


class Answered(NamedTuple):
    stream: Stream
    status: int


class Data(NamedTuple):
    stream: Stream
    payload: memoryview | bytes


class Ended(NamedTuple):
    """The peer will send nothing more on the stream: END_STREAM."""

    stream: Stream


class Reset(NamedTuple):
    stream: Stream
    code: int


class Writable(NamedTuple):
    """There is room to send again: on one stream, or (None) for those that wait for the connection's window."""

    stream: Stream | None


class Settled(NamedTuple):
    """The peer's settings are known; `streams` may be open at once."""

    streams: int


class GoAway(NamedTuple):
    """The peer takes no new streams; `unseen` are those of ours that it never looked at."""

    code: int
    unseen: tuple[Stream, ...]


Event = Asked | Answered | Data | Ended | Reset | Writable | Settled | GoAway
