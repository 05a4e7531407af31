"""What h2 does for a tunnel: preface, SETTINGS and their acknowledgement, PING. Pure; handles hostile bytes."""

from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.settings import SettingCodes

from agent.tunnel import frames
from agent.tunnel.frames import ProtocolError
from agent.tunnel.stream import STREAM_WINDOW

MAX_STREAMS = 1000
"""Streams a peer may have open on one tunnel."""
_KNOWN = frozenset(code.to_bytes(2, "big") for code in SettingCodes)
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(slots=True)
class Heard:
    """What a SETTINGS or PING frame of the peer means. `changed` are its settings that differ (None: it said nothing of
    them); `acknowledged` says that it goes by ours from here on; `alive` that it answered a `ping`."""

    changed: dict[int, int] | None = None
    acknowledged: bool = False
    alive: bool = False


class Negotiation:
    """One end's part. Frames to be sent stand in `said`, once, after each call."""

    __slots__ = ("_h2", "_preface")

    def __init__(self, *, client: bool) -> None:
        self._preface = b"" if client else _PREFACE
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=client, header_encoding=None))
        self._h2.local_settings = h2.settings.Settings(
            client=client,
            initial_values={
                SettingCodes.HEADER_TABLE_SIZE: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_FRAME_SIZE: frames.MAX_FRAME,
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.MAX_HEADER_LIST_SIZE: 2**14,
                **({SettingCodes.ENABLE_PUSH: 0} if client else {}),
            },
        )
        self._h2.initiate_connection()

    @property
    def said(self) -> bytes:
        said: bytes = self._h2.data_to_send()
        return said

    @property
    def greeted(self) -> bool:
        """Whether the peer's preface is complete; what arrives before goes to `greet`."""
        return not self._preface

    def greet(self, data: memoryview) -> memoryview:
        """Read the preface; -> what follows it."""
        n = min(len(self._preface), len(data))
        if data[:n] != self._preface[:n]:
            raise ProtocolError(frames.PROTOCOL_ERROR, "this is no HTTP/2")
        self._preface = self._preface[n:]
        if self.greeted:
            self._h2.receive_data(_PREFACE)
        return data[n:]

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._h2.ping(b"culvert!")

    def hear(self, frame: bytes) -> Heard:
        """Act on a whole SETTINGS or PING frame."""
        try:
            events = self._h2.receive_data(_known(frame))
        except h2.exceptions.ProtocolError as error:
            raise ProtocolError(int(getattr(error, "error_code", 1)), str(error)) from error
        heard = Heard()
        for event in events:
            if isinstance(event, h2.events.PingAckReceived):
                heard.alive = True
            elif isinstance(event, h2.events.SettingsAcknowledged):
                heard.acknowledged = True
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                heard.changed = {code: change.new_value for code, change in event.changed_settings.items()}
        return heard


def _known(frame: bytes) -> bytes:
    """A frame without settings that nobody knows: h2 keeps each that it is told, and there may be 65,536 of them."""
    length, kind, flags, stream = frames.parse_header(frame, 0)
    if kind != frames.SETTINGS or flags & frames.ACK or length % 6:
        return frame
    each = (frame[at : at + 6] for at in range(frames.HEADER_SIZE, len(frame), 6))
    known = b"".join(setting for setting in each if setting[:2] in _KNOWN)
    return frames.header(kind, flags, stream, len(known)) + known
