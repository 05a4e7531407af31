"""A node's tunnels, both ways, in this process: pool and arrivals with real certificates over loopback."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from agent.relay.loop import Relay
from agent.snapshot import Snapshot
from agent.tunnel.arrivals import Arrivals
from agent.tunnel.credentials import Credentials
from agent.tunnel.headers import Connect
from agent.tunnel.link import Link
from agent.tunnel.pool import Key, Pool, Shared
from agent.tunnel.stream import Asked, Stream
from ca import x509
from ca.identity import WorkloadIdentity
from redirect.origdst import dial_socket
from tests.agent.relay.rig import DB, WEB, News, authority, leaf


def cannot_mark() -> str:
    """Why sockets of the data path cannot be made here; empty when they can."""
    try:
        dial_socket(socket.AF_INET, 0).close()
    except OSError as error:
        return f"sockets of the data path carry a mark: run as root ({error})"
    return ""


needs_marks = pytest.mark.skipif(bool(cannot_mark()), reason=cannot_mark() or "-")


def credentials(*identities: WorkloadIdentity, view: Snapshot | None = None) -> Credentials:
    """Those of a node that hosts `identities`."""
    found = Credentials(lambda: view or Snapshot("n1"))
    found.trust(x509.pem(authority().cert))
    for identity in identities:
        found.put(str(identity), *leaf(identity))
    return found


class Wanted:
    """A waiter for a tunnel, and the owner of its stream."""

    def __init__(self, host: "Host") -> None:
        self._host = host
        self.link: Link | None = None
        self.stream: Stream | None = None
        self.why = ""
        self.status = 0
        self.lost = ""
        self.unseen = False
        self.code: int | None = None

    def linked(self, link: Link) -> None:
        self.link, self.stream = link, link.core.open(Connect("10.0.0.1:80"))
        self.stream.owner = self
        link.idle_since = None
        link.touch()
        self._host.news.tell()

    def failed(self, reason: str) -> None:
        self.why = reason
        self._host.news.tell()

    def end(self) -> None:
        """Reset the stream."""
        self.link.core.reset(self.stream)
        self.link.touch()
        self.link.freed()

    # ---- Owner

    def answered(self, status: int) -> None:
        self.status = status
        self._host.news.tell()

    def reset(self, code: int) -> None:
        self.code = code
        self._host.news.tell()

    def broken(self, reason: str, *, unseen: bool = False) -> None:
        self.lost, self.unseen = reason, unseen
        self._host.news.tell()

    def receive(self, payload: memoryview | bytes) -> None: ...

    def deliver(self) -> None: ...

    def ended(self) -> None: ...

    def pump(self) -> None: ...


class Host:
    """Dials with a pool, and is dialled: `listen` opens what stands for port 15008."""

    def __init__(self, nursery: trio.Nursery, *identities: WorkloadIdentity) -> None:
        self.nursery, self.news = nursery, News()
        self.relay, self.shared = Relay(), Shared()
        nursery.start_soon(self.relay.run)
        self.credentials = credentials(*identities)
        self.pool = Pool(self.relay, self.credentials, self.shared, nursery, worker=1, mark=0xC0170001)
        self.refusals: list[tuple[str, str]] = []
        self.asked: list[tuple[Link, Asked]] = []
        self.arrivals = Arrivals(
            self.relay, self.credentials, self.shared, nursery, worker=1, asked=self._asked, refused=self._refused
        )
        self.dialled = 0
        self._listeners: list[socket.socket] = []

    def _asked(self, link: Link, asked: Asked) -> None:
        self.asked.append((link, asked))
        asked.stream.owner = Wanted(self)
        link.core.answer(asked.stream, 200)
        link.touch()
        self.news.tell()

    def _refused(self, peer: str, reason: str) -> None:
        self.refusals.append((peer, reason))
        self.news.tell()

    def listen(self) -> int:
        """-> the port where tunnels may arrive."""
        sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._listeners.append(sock)
        self.nursery.start_soon(self._accept, trio.socket.from_stdlib_socket(sock.dup()))
        return sock.getsockname()[1]

    async def _accept(self, listener: trio.socket.SocketType) -> None:
        with listener:
            while True:
                sock, peer = await listener.accept()
                self.dialled += 1
                plain = socket.socket(fileno=sock.detach())
                plain.setblocking(False)
                self.arrivals.arrived(plain, peer)

    def want(self, port: int, *, source: WorkloadIdentity = WEB, destination: WorkloadIdentity = DB) -> Wanted:
        """Ask the pool for a tunnel."""
        wanted = Wanted(self)
        self.pool.ask(Key(source, destination, "127.0.0.1", port), wanted)
        return wanted

    @property
    def links(self) -> list[Link]:
        return [*self.pool.links, *self.arrivals.links]

    def close(self) -> None:
        for sock in self._listeners:
            sock.close()
        for link in self.links:
            link.close("the test is over")


@asynccontextmanager
async def hosts() -> AsyncIterator[tuple[Host, Host]]:
    """One with the identity WEB and one with DB."""
    async with trio.open_nursery() as nursery:
        web, db = Host(nursery, WEB), Host(nursery, DB)
        try:
            yield web, db
        finally:
            for host in (web, db):
                host.close()
            nursery.cancel_scope.cancel()
