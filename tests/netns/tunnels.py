"""The other end of a tunnel, made of other parts than ours: the standard library's TLS and the `h2` package."""

import ssl
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import trio

from agent.lab.place import Place
from tests.netns import traffic


class NoTunnel(Exception):
    """The other side let us not get as far as HTTP/2 settings."""


@dataclass
class Tunnel:
    """A client's end. Events that nobody has asked for yet wait in `events`."""

    stream: trio.SSLStream[trio.SocketStream]
    http: h2.connection.H2Connection
    events: list[h2.events.Event] = field(default_factory=list)

    async def receive(self) -> None:
        """Take in what comes next; NoTunnel when it is the end."""
        try:
            data = await self.stream.receive_some(65536)
            self.events += self.http.receive_data(data) if data else []
            await self.flush()
        except (trio.BrokenResourceError, h2.exceptions.ProtocolError) as error:
            raise NoTunnel(str(error.__cause__ or error)) from error
        if not data:
            raise NoTunnel("the connection was closed")

    async def flush(self) -> None:
        await self.stream.send_all(self.http.data_to_send())

    async def ask(self, headers: list[tuple[str, str]]) -> tuple[int, int]:
        """Send a request; (stream, status), or status 0 when the stream was reset."""
        number = self.http.get_next_available_stream_id()
        self.http.send_headers(number, headers)
        await self.flush()
        while True:
            for event in self.events:
                if isinstance(event, h2.events.ResponseReceived) and event.stream_id == number:
                    return number, int(dict(event.headers)[b":status"])
                if isinstance(event, h2.events.StreamReset) and event.stream_id == number:
                    return number, 0
            await self.receive()

    async def connect(self, authority: str) -> tuple[int, int]:
        """Ask for a connection to `authority`."""
        return await self.ask([(":method", "CONNECT"), (":authority", authority)])

    async def exchange(self, number: int, text: bytes) -> bytes:
        """Say `text` in a stream and end it; all that comes back."""
        self.http.send_data(number, text, end_stream=True)
        await self.flush()
        while not any(isinstance(e, h2.events.StreamEnded) and e.stream_id == number for e in self.events):
            await self.receive()
        return b"".join(e.data for e in self.events if isinstance(e, h2.events.DataReceived) and e.stream_id == number)


@asynccontextmanager
async def open_tunnel(
    place: Place, address: str, credentials: bytes | None, server_name: str | None, *, alpn: str = "h2"
) -> AsyncIterator[Tunnel]:
    """Dial `address` with a PEM of key and chain, as far as the other side's settings; NoTunnel when it lets us not.

    Nothing of the server is verified: it is the server that is tested here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    _load(context, credentials)
    with trio.fail_after(15):
        async with await traffic.dial(place, address, 15008) as raw:
            stream = trio.SSLStream(raw, context, server_hostname=server_name, https_compatible=True)
            http = h2.connection.H2Connection(
                h2.config.H2Configuration(client_side=True, validate_inbound_headers=True)
            )
            http.initiate_connection()
            tunnel = Tunnel(stream, http)
            try:
                await stream.do_handshake()
                await tunnel.flush()
            except trio.BrokenResourceError as error:
                raise NoTunnel(str(error.__cause__)) from error
            while not any(isinstance(e, h2.events.RemoteSettingsChanged) for e in tunnel.events):
                await tunnel.receive()
            yield tunnel


@asynccontextmanager
async def impostor(place: Place, address: str, credentials: bytes) -> AsyncIterator[list[bytes]]:
    """A server on the tunnel port that shows these credentials to whoever asks for anybody; what it was sent."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, credentials)
    heard: list[bytes] = []

    async def serve(raw: trio.SocketStream) -> None:
        stream = trio.SSLStream(raw, context, server_side=True, https_compatible=True)
        async for data in stream:
            heard.append(bytes(data))

    async with traffic.serving(place, address, 15008, serve):
        yield heard


def _load(context: ssl.SSLContext, credentials: bytes | None) -> None:
    if credentials is None:
        return
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "pem")
        file.write_bytes(credentials)
        context.load_cert_chain(file)
