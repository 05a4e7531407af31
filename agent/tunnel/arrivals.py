"""Tunnels that other agents open to this node."""

import socket
from collections import Counter
from collections.abc import Callable

import trio

from agent.relay.loop import Relay
from agent.tunnel.credentials import Credentials
from agent.tunnel.handshake import HandshakeError, accept
from agent.tunnel.link import Link
from agent.tunnel.pool import Shared
from agent.tunnel.stream import Asked
from agent.tunnel.terms import agreed

SHAKING = 512
"""Handshakes under way at once; each costs a millisecond and 50 KB, and a stranger can begin one. More wait."""

SHARE = SHAKING // 4
"""Of these, waiting ones included, for one address: a stranger that dawdles takes no more than that from the others."""


class Arrivals:
    """The inbound tunnels of a worker. Is the Watcher of its links."""

    def __init__(
        self,
        relay: Relay,
        credentials: Credentials,
        shared: Shared,
        nursery: trio.Nursery,
        *,
        worker: int,
        asked: Callable[[Link, Asked], None],
        refused: Callable[[str, str], None],
    ) -> None:
        """Handshakes run in `nursery`; `asked` judges streams; `refused(peer address, reason)` reports strangers."""
        self._relay, self._credentials, self._shared, self._nursery = relay, credentials, shared, nursery
        self._worker, self._asked, self._refused = worker, asked, refused
        self._shaking = trio.CapacityLimiter(SHAKING)
        self._shares: Counter[str] = Counter()
        self.links: set[Link] = set()

    def arrived(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        """A TCP connection to 15008."""
        address = peer[0]
        if self._shares[address] >= SHARE:
            sock.close()
            self._refused(address, f"{SHARE} handshakes are under way from there: the rest are refused")
            return
        self._shares[address] += 1
        self._nursery.start_soon(self._shake, sock, address)

    async def _shake(self, sock: socket.socket, peer: str) -> None:
        try:
            await self._joined(sock, peer)
        finally:
            self._shares[peer] -= 1
            if not self._shares[peer]:
                del self._shares[peer]

    async def _joined(self, sock: socket.socket, peer: str) -> None:
        try:
            async with self._shaking:
                machine, local, identity = await accept(sock, self._credentials)
        except HandshakeError as error:
            self._refused(peer, str(error))
            return
        except trio.Cancelled:
            sock.close()
            raise
        terms = agreed(machine, local, identity)
        if why := terms.objection(self._credentials.revoked):
            sock.close()
            self._refused(peer, why)
            return
        link = Link(
            self._relay,
            sock,
            machine,
            self._shared.core(client=False),
            self,
            number=self._shared.number(self._worker),
            terms=terms,
            address=peer,
        )
        self.links.add(link)
        link.start()

    # ---- Watcher

    def asked(self, link: Link, asked: Asked) -> None:
        self._asked(link, asked)

    def roomier(self, link: Link) -> None:
        """Whoever dialled it waits for room, not we."""

    def leaving(self, link: Link) -> None:
        if link.closed:
            self.links.discard(link)
