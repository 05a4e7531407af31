"""A centre on loopback with real TLS, and the callers that tests need."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trio

from ca import endpoint, http, server, tls, x509
from ca.authority import Authority
from ca.central import CentralSettings
from ca.centre import Centre
from ca.channel import connect
from ca.client import Client
from ca.contract import JoinRequest, JoinResponse
from ca.identity import CentralIdentity, Identity, NodeIdentity, OperatorIdentity
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Metadata
from ca.store.sqlite import SqliteStore
from ca.tokens import JoinToken

DOMAIN = "shop.example"
Credentials = tuple[bytes, bytes]


class Clock:
    """Unix time that a test can move."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@dataclass
class Running:
    """`address` is where it listens."""

    centre: Centre
    address: str
    clock: Clock
    settings: CentralSettings

    @property
    def roots(self) -> bytes:
        return self.centre.roots().encode()

    def credentials(self, identity: Identity, life: timedelta = timedelta(hours=1)) -> Credentials:
        """A certificate for anybody, straight from the issuing key."""
        key = x509.new_key()
        issuer = self.centre.authority.issuer
        leaf = x509.issue(issuer, identity, key.public_key(), datetime.now(UTC), life)
        return x509.pem(leaf, issuer.cert), x509.key_pem(key)

    def client(self, identity: Identity) -> Client:
        return Client.over_tls(self.address, DOMAIN, self.roots, self.credentials(identity))

    def operator(self) -> Client:
        return self.client(OperatorIdentity(DOMAIN, "admin"))

    def node(self, name: str) -> Client:
        return self.client(NodeIdentity(DOMAIN, name))

    async def join(self, token: str, name: str, address: str = "10.0.0.1") -> JoinResponse:
        """Join as an agent does."""
        csr = x509.make_csr(x509.new_key(), NodeIdentity(DOMAIN, name)).decode()
        return await Client.joining(JoinToken.parse(token)).join(JoinRequest(token, csr, address))

    async def raw(self, credentials: Credentials | None, method: str, target: str, **more: object) -> http.Response:
        """A call as any program could make it."""
        host, port = endpoint.split(self.address)
        context = tls.context(x509.load_chain(self.roots), credentials, server=False)
        async with await connect(host, port, context, expect=CentralIdentity) as channel:
            return await http.request(channel, method, target, host=self.address, **more)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def running(directory: Path, clock: Clock | None = None, **options: object) -> AsyncIterator[Running]:
    """Serve the mesh in `directory` (made if there is none) for the length of the block. `options` are settings."""
    clock = clock or Clock()
    settings = CentralSettings(dir=directory, listen="127.0.0.1:0", **options)  # type: ignore[arg-type]
    with SqliteStore.open(directory, create=True) as store:
        if store.issuers():
            authority = Authority.open(store, store.keys)
        else:
            authority = Authority.create(store, store.keys, DOMAIN, datetime.now(UTC))
        listeners = await server.listen(settings.listen)
        address = endpoint.join(*listeners[0].socket.getsockname()[:2])
        centre = Centre(store, authority, advertise=address, tick=0.01, stall=settings.stall, clock=clock)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, centre, settings, listeners)
            await centre.apply([Mesh(metadata=Metadata("mesh"), spec=MeshSpec(DOMAIN))])
            yield Running(centre, address, clock, settings)
            nursery.cancel_scope.cancel()
