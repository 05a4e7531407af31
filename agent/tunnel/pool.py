"""Which tunnel carries a new connection. Tunnels are shared by (source identity, destination identity, node).

One dialler a key; who comes meanwhile waits for it (WAITING at most, then is refused). A tunnel that is full stays in
the pool, and another is dialled beside it; one that was told to go away leaves it, and ends with its last stream.

Pairs that talk do not wait for a handshake twice: the next tunnel is dialled ahead when the last one with room is
nearly full, and when one that was in use is about to end.
"""

import socket
import time
from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import trio

from agent.relay.loop import Relay
from agent.tunnel.core import Core
from agent.tunnel.credentials import Credentials
from agent.tunnel.frames import REFUSED_STREAM
from agent.tunnel.handshake import HandshakeError, dial
from agent.tunnel.headers import Connect
from agent.tunnel.link import Link
from agent.tunnel.stream import Asked, Budget
from agent.tunnel.terms import agreed
from ca.identity import WorkloadIdentity
from ca.tls import Machine

WAITING = 4096
"""Connections that may wait for one tunnel to be dialled: beyond that the node is drowning, and refusing is kinder."""
IDLE = 300.0
"""Seconds after which a tunnel without streams is closed."""
TALKED = 60.0
"""Seconds after its last stream for which a tunnel that goes away is replaced without anybody asking."""


class Key(NamedTuple):
    """What a tunnel may be shared by."""

    source: WorkloadIdentity
    destination: WorkloadIdentity
    address: str
    port: int


class Waiter(Protocol):
    """A connection on its way into a tunnel."""

    def linked(self, link: Link) -> None:
        """Open a stream on `link`; it has room."""

    def failed(self, reason: str) -> None:
        """There is no tunnel."""


@dataclass(slots=True)
class _Place:
    links: list[Link] = field(default_factory=list)
    waiting: deque[Waiter] = field(default_factory=deque)
    dialling: bool = False


@dataclass(slots=True)
class Shared:
    """What all tunnels of a worker share: header block caches, the budget of windows, and the numbering."""

    written: dict[tuple[str, str], bytes] = field(default_factory=dict)
    read: dict[bytes, Connect] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    count: int = 0

    def core(self, *, client: bool) -> Core:
        return Core(client=client, written=self.written, read=self.read, budget=self.budget)

    def number(self, worker: int) -> str:
        self.count += 1
        return f"t{worker}.{self.count}"


class Pool:
    """The outbound tunnels of a worker. Is the Watcher of its links."""

    def __init__(
        self, relay: Relay, credentials: Credentials, shared: Shared, nursery: trio.Nursery, *, worker: int, mark: int
    ) -> None:
        """Diallers run in `nursery`; `mark` goes on their sockets."""
        self._relay, self._credentials, self._shared, self._nursery = relay, credentials, shared, nursery
        self._worker, self._mark = worker, mark
        self.ahead = True
        """Whether tunnels are dialled ahead; not any more by a worker that is to end."""
        self._places: dict[Key, _Place] = {}
        self._keys: dict[Link, Key] = {}

    @property
    def links(self) -> list[Link]:
        """Every open tunnel, those that are leaving too."""
        return list(self._keys)

    def ask(self, key: Key, waiter: Waiter) -> None:
        """Have `waiter` linked or failed, now or soon."""
        place = self._places.setdefault(key, _Place())
        for link in place.links:
            if not link.core.full:
                waiter.linked(link)
                if link.core.filling and self.ahead and all(each.core.filling for each in place.links):
                    self._dial(key, place)
                return
        if len(place.waiting) >= WAITING:
            waiter.failed(f"{WAITING} connections already wait for a tunnel to {key.address}")
            return
        place.waiting.append(waiter)
        self._dial(key, place)

    def _dial(self, key: Key, place: _Place) -> None:
        # One whose settings are on their way will say how much more it carries (`roomier`).
        if not place.dialling and all(link.core.settled for link in place.links):
            place.dialling = True
            self._nursery.start_soon(self._dialler, key, place)

    async def _dialler(self, key: Key, place: _Place) -> None:
        try:
            if why := self._credentials.revoked.identity(key.source) or self._credentials.revoked.identity(
                key.destination
            ):
                raise HandshakeError(why)
            ctx = self._credentials.dialling(key.source)
            if ctx is None:
                raise HandshakeError(f"this node holds no certificate for {key.source}")
            sock, machine = await dial(key.address, key.port, self._mark, ctx, key.destination)
            link = self._link(key, sock, machine)
        except HandshakeError as error:
            place.dialling = False
            self._fail(key, place, str(error))
            return
        place.dialling = False
        place.links.append(link)
        self._serve(key, place)

    def _link(self, key: Key, sock: socket.socket, machine: Machine) -> Link:
        terms = agreed(machine, key.source, key.destination)
        if why := terms.objection(self._credentials.revoked):
            sock.close()
            raise HandshakeError(why)
        link = Link(
            self._relay,
            sock,
            machine,
            self._shared.core(client=True),
            self,
            number=self._shared.number(self._worker),
            terms=terms,
            address=key.address,
        )
        self._keys[link] = key
        link.start()
        return link

    def _serve(self, key: Key, place: _Place) -> None:
        for link in list(place.links):
            while place.waiting and not link.core.full:
                place.waiting.popleft().linked(link)
        if place.waiting:
            self._dial(key, place)

    def _fail(self, key: Key, place: _Place, reason: str) -> None:
        waiting, place.waiting = place.waiting, deque()
        for waiter in waiting:
            waiter.failed(reason)
        self._tidy(key)

    def _tidy(self, key: Key) -> None:
        place = self._places.get(key)
        if place and not (place.links or place.waiting or place.dialling):
            del self._places[key]

    # ---- Watcher

    def asked(self, link: Link, asked: Asked) -> None:
        """The node we dialled may not open streams towards us."""
        link.core.reset(asked.stream, REFUSED_STREAM)

    def roomier(self, link: Link) -> None:
        """Streams ended: who waits may go."""
        key = self._keys.get(link)
        place = self._places.get(key) if key else None
        if key and place and place.waiting:
            self._serve(key, place)

    def leaving(self, link: Link) -> None:
        """It takes no new streams; forgotten when it is closed."""
        key = self._keys.get(link)
        if key is None:
            return
        if link.closed:
            del self._keys[link]
        place = self._places.get(key)
        if place is None:
            return
        if link in place.links:
            place.links.remove(link)
            if not link.closed and self.ahead and _talked(link):
                self._dial(key, place)
        if link.closed and not link.core.settled:
            # As good as a failed handshake (a refused client certificate comes to light here): no use in another.
            self._fail(key, place, link.reason)
            return
        if place.waiting:
            self._dial(key, place)
        self._tidy(key)


def _talked(link: Link) -> bool:
    # One that carried nothing is not replaced: a peer that takes tunnels only to end them would be dialled for ever.
    return link.core.carried > 0 and (link.idle_since is None or time.monotonic() - link.idle_since < TALKED)
