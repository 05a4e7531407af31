"""A centre's side and a client's on loopback sockets, and the certificates of both."""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import trio
from OpenSSL import SSL

from ca import tls, x509
from ca.channel import Channel, ChannelError, Expected, connect
from ca.identity import CentralIdentity, Identity, NodeIdentity, WorkloadIdentity

NOW, DAY = datetime.now(UTC), timedelta(days=1)
TD = "shop.example"
CENTRE, NODE, WEB = CentralIdentity(TD, "central"), NodeIdentity(TD, "web-1"), WorkloadIdentity(TD, "shop", "web")
KEY = x509.new_key()
ROOT = x509.new_root(TD, NOW - 100 * DAY, 3650 * DAY)
ISSUING = x509.new_issuing(ROOT, NOW - 100 * DAY, 365 * DAY)
OTHER_ROOT = x509.new_root(TD, NOW, 3650 * DAY)
OTHER_ISSUING = x509.new_issuing(OTHER_ROOT, NOW, 365 * DAY)

Credentials = tuple[bytes, bytes]


def credentials(identity: Identity, issuer: x509.Issuer = ISSUING, at: datetime = NOW) -> Credentials:
    leaf = x509.issue(issuer, identity, KEY.public_key(), at, DAY)
    return x509.pem(leaf, issuer.cert), x509.key_pem(KEY)


def server_context(who: Credentials | None = None, *, client_certificate: bool = True) -> SSL.Context:
    return tls.context([ROOT.cert], who or credentials(CENTRE), server=True, peer_certificate=client_certificate)


def client_context(who: Credentials | None = None, root: x509.Issuer = ROOT) -> SSL.Context:
    return tls.context([root.cert], who, server=False)


async def echo(channel: Channel) -> None:
    while data := await channel.receive_some():
        await channel.send_all(data)


@dataclass
class Server:
    """What a listening socket's channels came to: `outcomes` has the peer or the error of each handshake."""

    port: int
    outcomes: list[Identity | str | None] = field(default_factory=list)
    met: trio.Event = field(default_factory=trio.Event)


@contextlib.asynccontextmanager
async def serving(
    context: SSL.Context,
    talk: Callable[[Channel], Awaitable[None]] = echo,
    *,
    expect: Expected | None = None,
    timeout: float = 5,  # noqa: ASYNC109 - handed on
) -> AsyncIterator[Server]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = Server(listener.socket.getsockname()[1])

    async def serve(stream: trio.SocketStream) -> None:
        channel = Channel(stream, context, server=True, expect=expect, timeout=timeout)
        async with channel:
            try:
                await channel.handshake()
            except ChannelError as error:
                server.outcomes.append(str(error))
                return
            finally:
                server.met.set()
            server.outcomes.append(channel.peer)
            with contextlib.suppress(trio.BrokenResourceError):
                await talk(channel)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(trio.serve_listeners, serve, [listener], handler_nursery=nursery))
        try:
            with trio.fail_after(20):
                yield server
        finally:
            nursery.cancel_scope.cancel()


async def dial(server: Server, context: SSL.Context, expect: Expected = CentralIdentity, within: float = 5) -> Channel:
    return await connect("127.0.0.1", server.port, context, expect=expect, timeout=within)
