"""Questions to systemd over the D-Bus of its own socket, which is there without any bus daemon.

One task uses a connection: while it waits for an answer, signals that come are kept for `signal`.
"""

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from jeepney import DBusAddress, HeaderFields, Message, MessageType, new_method_call
from jeepney.auth import BEGIN, AuthenticationError, Authenticator
from jeepney.io.trio import DBusConnection

SOCKET = "/run/systemd/private"
WITHIN = 20.0
"""Seconds for an answer: systemd is busy for some while it reloads thousands of units."""
NUDGE = 0.1
_KEPT = 10_000
"""Signals kept unread; more than that would be read as one anyway."""

_NAME = "org.freedesktop.systemd1"
_PEER = DBusAddress("/", _NAME, "org.freedesktop.DBus.Peer")
MANAGER = DBusAddress("/org/freedesktop/systemd1", _NAME, f"{_NAME}.Manager")


class BusError(Exception):
    """systemd does not answer, or says no; the message says why. `gone` is set when the connection is of no use any
    more."""

    def __init__(self, why: str, gone: bool = False) -> None:
        super().__init__(why)
        self.gone = gone


class Bus:
    """A connection to systemd."""

    def __init__(self, connection: DBusConnection) -> None:
        self._connection = connection
        self._signals: deque[Message] = deque(maxlen=_KEPT)

    async def call(self, address: DBusAddress, method: str, signature: str | None = None, *body: object) -> Any:
        """The answer: a tuple. BusError."""
        serial = next(self._connection.outgoing_serial)
        try:
            with trio.fail_after(WITHIN):
                await self._connection.send(new_method_call(address, method, signature, body), serial=serial)
                while True:
                    message = await self._receive()
                    if message.header.fields.get(HeaderFields.reply_serial) != serial:
                        continue
                    if message.header.message_type is MessageType.error:
                        name = str(message.header.fields.get(HeaderFields.error_name, "")).rpartition(".")[2]
                        raise BusError(f"systemd says: {message.body[0] if message.body else name}")
                    return message.body
        except trio.TooSlowError as error:
            raise BusError(f"systemd does not answer within {WITHIN:g} s", gone=True) from error
        except (trio.BrokenResourceError, trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise BusError("systemd has closed the connection", gone=True) from error

    async def properties(self, path: str, interface: str) -> dict[str, Any]:
        """All properties of an object. BusError."""
        address = DBusAddress(path, _NAME, "org.freedesktop.DBus.Properties")
        (values,) = await self.call(address, "GetAll", "s", f"{_NAME}.{interface}")
        return {name: value for name, (_, value) in values.items()}

    async def signal(self) -> tuple[str, tuple[Any, ...]]:
        """The next signal: its name and what it carries. BusError."""
        try:
            while not self._signals:
                await self._receive()
        except (trio.BrokenResourceError, trio.EndOfChannel, trio.ClosedResourceError) as error:
            raise BusError("systemd has closed the connection", gone=True) from error
        message = self._signals.popleft()
        return str(message.header.fields[HeaderFields.member]), tuple(message.body)

    async def _receive(self) -> Message:
        message = await self._connection.receive()
        if message.header.message_type is MessageType.signal:
            self._signals.append(message)
        return message


@asynccontextmanager
async def systemd(socket: str = SOCKET) -> AsyncIterator[Bus]:
    """A connection for the time of the block, which is told of new units and reloads. BusError when there is none."""
    try:
        stream = await trio.open_unix_socket(socket)
    except OSError as error:
        raise BusError(f"{socket}: {error.strerror or error}", gone=True) from error
    async with stream:
        try:
            with trio.fail_after(WITHIN):
                await stream.send_all(b"\0")
                authenticator = Authenticator(inc_null_byte=False)
                for request in authenticator:
                    await stream.send_all(request)
                    authenticator.feed(await stream.receive_some())
                await stream.send_all(BEGIN)
        except (trio.TooSlowError, trio.BrokenResourceError, AuthenticationError) as error:
            raise BusError(f"systemd does not let us in at {socket}: {error}", gone=True) from error
        bus = Bus(DBusConnection(stream.socket))
        await _awaken(bus)
        await bus.call(MANAGER, "Subscribe")
        yield bus


async def _awaken(bus: Bus) -> None:
    """Make systemd listen: what it reads together with the end of the handshake, it leaves lying until more comes."""
    with trio.move_on_after(WITHIN):
        while True:
            with trio.move_on_after(NUDGE):
                await bus.call(_PEER, "Ping")
                return
    raise BusError(f"systemd does not answer within {WITHIN:g} s", gone=True)
