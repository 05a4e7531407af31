"""Two nodes in this process: relays, a tunnel between them over loopback TCP with real TLS, and applications.

    application -- captured socket [Leg] == tunnel == [Leg] socket being connected -- application

Only the capture and the dialling of workloads are left out: the rig hands the sockets over itself.
"""

import os
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache

import trio

from agent.book import Book, Entry
from agent.connections import Connection, Direction, Party, Security
from agent.relay.leg import Leg
from agent.relay.loop import Relay
from agent.tunnel.headers import Connect
from agent.tunnel.link import Link
from agent.tunnel.pool import Shared
from agent.tunnel.stream import Asked, Budget
from agent.tunnel.terms import agreed
from ca import tls, x509
from ca.identity import WorkloadIdentity

WEB = WorkloadIdentity("shop.example", "shop", "web")
DB = WorkloadIdentity("shop.example", "shop", "db")
START = Budget().left
_RESET = struct.pack("ii", 1, 0)


@cache
def authority() -> x509.Issuer:
    """The root of every test's mesh."""
    return x509.new_root("shop.example", datetime.now(UTC), timedelta(days=1))


@cache
def leaf(identity: WorkloadIdentity) -> tuple[bytes, bytes]:
    """(chain, key) in PEM."""
    key = x509.new_key()
    cert = x509.issue(authority(), identity, key.public_key(), datetime.now(UTC), timedelta(hours=1))
    return x509.pem(cert), x509.key_pem(key)


@cache
def _context(identity: WorkloadIdentity, *, server: bool) -> object:
    return tls.context([authority().cert], leaf(identity), server=server, alpn=b"h2")


def machines() -> tuple[tls.Machine, tls.Machine]:
    """A client's and a server's, with the handshake behind them."""
    client = tls.Machine(_context(WEB, server=False), server=False, server_name=DB.sni)
    server = tls.Machine(_context(DB, server=True), server=True)
    done = False
    while not done:
        done = client.handshake() & server.handshake()
        for one, other in ((client, server), (server, client)):
            if flight := one.take():
                other.feed(flight)
    return client, server


def wire(sndbuf: int = 0, rcvbuf: int = 0) -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection over loopback, non-blocking; buffer sizes other than 0 are set on both."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        if rcvbuf:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        near = socket.socket()
        if rcvbuf:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
        near.connect(server.getsockname())
        far, _ = server.accept()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if sndbuf:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    return near, far


def reset(sock: socket.socket | trio.socket.SocketType) -> None:
    """Close with a TCP reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    sock.close()


def descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


class News:
    """Something that can be waited for again and again."""

    def __init__(self) -> None:
        self._lot = trio.lowlevel.ParkingLot()

    def tell(self) -> None:
        self._lot.unpark_all()

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until `true()`, which can change only when this is told."""
        with trio.fail_after(20):
            while not true():
                await self._lot.park()


async def soon(true: Callable[[], bool], seconds: float = 20) -> None:
    """Wait for something that the kernel or a relay brings about without telling: asks after each turn of the loop."""
    with trio.fail_after(seconds):
        while not true():  # noqa: ASYNC110 - there is no event to wait for
            await trio.sleep(0.0005)


@dataclass
class Conn:
    """One connection between two applications. `near` is the caller's end, `far` the called one's."""

    near: trio.socket.SocketType
    far: trio.socket.SocketType | None
    near_entry: Entry
    sndbuf: int = 0
    far_entry: Entry | None = None

    def close(self) -> None:
        self.near.close()
        if self.far is not None:
            self.far.close()


class Node:
    """One agent's data path. Watcher of its end of the tunnel."""

    def __init__(self, number: int) -> None:
        self.relay = Relay()
        self.news = News()
        self.book = Book(number, self.news.tell)
        self.shared = Shared()
        self.left: list[Link] = []
        self.roomy = 0
        self.asked_for: list[Asked] = []
        self.take: Callable[[Link, Asked], None] | None = None

    def asked(self, link: Link, asked: Asked) -> None:
        self.asked_for.append(asked)
        if self.take is not None:
            self.take(link, asked)
        self.news.tell()

    def roomier(self, link: Link) -> None:
        self.roomy += 1
        self.news.tell()

    def leaving(self, link: Link) -> None:
        self.left.append(link)
        self.news.tell()

    def closed(self) -> list[Connection]:
        return self.book.take()[0]

    @property
    def handlers(self) -> int:
        """Descriptors in the relay, beside its own bell."""
        return len(self.relay._handlers) - 1


@dataclass
class Rig:
    """`source` opens streams to `target`, over `out` (its end) and `into` (the other)."""

    source: Node
    target: Node
    nursery: trio.Nursery
    out: Link = field(init=False)
    into: Link = field(init=False)
    wires: list[socket.socket] = field(default_factory=list)
    conns: list[Conn] = field(default_factory=list)
    refuse: int = 0
    _calls: list[Conn] = field(default_factory=list)

    def join(self, sndbuf: int = 0, rcvbuf: int = 0) -> None:
        """Open a tunnel."""
        near, far = wire(sndbuf, rcvbuf)
        client, server = machines()
        self.wires = [near, far]
        self.out = self._link(self.source, near, client, client=True)
        self.into = self._link(self.target, far, server, client=False)
        self.target.take = self._taken
        self.out.start()
        self.into.start()

    def _link(self, node: Node, sock: socket.socket, machine: tls.Machine, *, client: bool) -> Link:
        local, peer = (WEB, DB) if client else (DB, WEB)
        core = node.shared.core(client=client)
        terms, address = agreed(machine, local, peer), sock.getpeername()[0]
        return Link(node.relay, sock, machine, core, node, number="t1", terms=terms, address=address)

    def _taken(self, link: Link, asked: Asked) -> None:
        """Connect the asked stream to the application that waits for it."""
        conn = self._calls.pop(0)
        entry = self.target.book.enter(Direction.INBOUND, Security.MTLS, Party(identity=str(link.peer)))
        conn.far_entry = entry
        if self.refuse:
            link.core.answer(asked.stream, self.refuse)
            link.touch()
            self.target.book.close(entry)
            link.freed()
            return
        assert asked.ask is not None
        host, _, port = asked.ask.authority.rpartition(":")
        dialled = socket.socket()
        dialled.setblocking(False)
        if conn.sndbuf:
            dialled.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, conn.sndbuf)
        dialled.connect_ex((host, int(port)))
        Leg(dialled, link, asked.stream, self.target.book, entry)

    def call(self, *, link: Link | None = None, to: tuple[str, int] | None = None, sndbuf: int = 0) -> Conn:
        """Open a connection through the tunnel. With `to`, there is no application at the other end but what is there.

        `sndbuf` bounds the buffers of the applications' sockets.
        """
        link = link or self.out
        app, captured = wire(sndbuf, sndbuf)
        entry = self.source.book.enter(Direction.OUTBOUND, Security.MTLS, Party("shop/web"))
        conn = Conn(trio.socket.from_stdlib_socket(app), None, entry, sndbuf)
        self._calls.append(conn)
        self.conns.append(conn)
        listener = None
        if to is None:
            listener = socket.create_server(("127.0.0.1", 0))
            if sndbuf:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, sndbuf)
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
            to = listener.getsockname()
        stream = link.core.open(Connect(f"{to[0]}:{to[1]}", "", 'for="10.0.0.1:4711"'))
        Leg(captured, link, stream, self.source.book, entry)
        link.touch()
        if listener is not None:
            conn.far = _Waiting(listener)
        return conn

    async def connect(self, *, sndbuf: int = 0) -> Conn:
        """`call`, and wait for both applications to have each other."""
        conn = self.call(sndbuf=sndbuf)
        await self.accept(conn)
        return conn

    async def accept(self, conn: Conn) -> trio.socket.SocketType:
        """The called application's socket."""
        if isinstance(conn.far, _Waiting):
            conn.far = await conn.far.accept()
        assert conn.far is not None
        return conn.far

    async def idle(self) -> None:
        """Wait until no connection is left on either node."""
        await self.source.news.until(lambda: not self.source.book.live)
        await self.target.news.until(lambda: not self.target.book.live)


class _Waiting:
    """An application that has not accepted yet."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = trio.socket.from_stdlib_socket(listener)

    async def accept(self) -> trio.socket.SocketType:
        with trio.fail_after(20):
            sock, _ = await self._listener.accept()
        self._listener.close()
        return sock

    def close(self) -> None:
        self._listener.close()


@asynccontextmanager
async def rig(*, sndbuf: int = 0, rcvbuf: int = 0) -> AsyncIterator[Rig]:
    """A tunnel. At the end everything is closed, and it is checked that nothing of it is left behind."""
    authority(), leaf(WEB), leaf(DB)
    before = descriptors()
    source, target = Node(1), Node(2)
    async with trio.open_nursery() as nursery:
        both = Rig(source, target, nursery)
        nursery.start_soon(source.relay.run)
        nursery.start_soon(target.relay.run)
        both.join(sndbuf, rcvbuf)
        try:
            yield both
        except BaseException:
            nursery.cancel_scope.cancel()
            for conn in both.conns:
                conn.close()
            both.out.close("the test failed")
            both.into.close("the test failed")
            raise
        for conn in both.conns:
            conn.close()
        await both.idle()
        both.out.close("the test is over")
        await soon(lambda: both.into.closed)
        for node in (source, target):
            assert node.handlers == 0
            assert not node.book.live
            assert node.shared.budget.left == START
        assert not both.out.core.streams
        assert not both.into.core.streams
        nursery.cancel_scope.cancel()
    assert descriptors() <= before


async def send(sock: trio.socket.SocketType, data: bytes) -> None:
    """All of it."""
    view = memoryview(data)
    while view:
        view = view[await sock.send(view) :]


async def receive(sock: trio.socket.SocketType, length: int) -> bytes:
    """Exactly so much."""
    got = bytearray()
    with trio.fail_after(20):
        while len(got) < length:
            piece = await sock.recv(min(2**18, length - len(got)))
            assert piece, f"it ended after {len(got)} of {length} bytes"
            got += piece
    return bytes(got)


async def receive_all(sock: trio.socket.SocketType) -> bytes:
    """Until its clean end."""
    got = bytearray()
    with trio.fail_after(20):
        while piece := await sock.recv(2**18):
            got += piece
    return bytes(got)
