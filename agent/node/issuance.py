"""The certificates of a node: its own and those of its workloads, asked for at the centre, kept on disk, handed out."""

import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
import trio

from agent.clock import CentreClock
from agent.leaf import Leaf, read_leaf, request
from agent.node.files import StateError
from agent.node.renewal import IssueError, Renewal
from agent.node.state import Membership, State
from ca.client import Client, ClientError
from ca.contract import SignResponse
from ca.identity import NodeIdentity, parse
from ca.x509 import CertificateError, load_chain

log: structlog.stdlib.BoundLogger = structlog.get_logger()

_T = TypeVar("_T")


class Issuance:
    """`own` renews the node's certificate, `workloads` those of its workloads; both run as tasks of their owner.

    `hold` and `trust` hand leaves and roots (PEM) to whoever uses them; `changed` is called when what there is has
    changed, `renewed` when the node's own certificate has.
    """

    def __init__(
        self,
        state: State,
        membership: Membership,
        address: str,
        leaf: Leaf,
        roots: bytes,
        clock: CentreClock,
        max_skew: float,
        *,
        hold: Callable[[Leaf], None],
        trust: Callable[[bytes], None],
        changed: Callable[[], None],
        renewed: Callable[[], None],
        rng: random.Random,
    ) -> None:
        self.identity = str(NodeIdentity(membership.trust_domain, membership.node))
        self._state, self._domain, self._address, self._roots = state, membership.trust_domain, address, roots
        self._clock, self._max_skew = clock, max_skew
        self._hold, self._trust, self._changed, self._renewed = hold, trust, changed, renewed
        self.own = Renewal(self._renew_own, self._own_renewed, self._failed, time.time, rng)
        self.own.want([self.identity])
        self.own.schedule.hold(leaf)
        self.workloads = Renewal(self._sign, self._signed, self._failed, time.time, rng)
        trust(roots)

    def leaves(self) -> dict[str, Leaf]:
        """All that are held, by identity."""
        return {**self.own.schedule.leaves(), **self.workloads.schedule.leaves()}

    def kick(self) -> None:
        """Try what is due at once."""
        self.workloads.kick()
        self.own.kick()

    def client(self) -> Client:
        """Calls the centre as this node."""
        leaf = self.own.schedule.leaves()[self.identity]
        return self._called_with((leaf.chain, leaf.key))

    async def measure(self) -> None:
        """Ask the centre for its time, even where the dates of certificates make TLS fail."""
        await Client.asking_time(self._address, self._domain, self._roots, self._clock.heard).time()

    async def trusted(self, pem: bytes) -> None:
        """The centre said which roots to trust."""
        if pem == self._roots:
            return
        try:
            load_chain(pem)
        except CertificateError as error:
            # With them neither a worker nor the next start of this agent could go on.
            log.error("roots-refused", error=str(error))
            return
        self._roots = pem
        self._trust(pem)
        log.info("roots-changed")
        await kept(self._state.save_roots, pem)

    def _called_with(self, credentials: tuple[bytes, bytes] | None) -> Client:
        return Client.over_tls(self._address, self._domain, self._roots, credentials, timed=self._clock.heard)

    async def _renew_own(self, uri: str) -> Leaf:
        leaf = self.own.schedule.leaves()[uri]
        if self._clock.now() < leaf.not_after:
            return await self._issue(uri, self.client().renew)
        # The node was off, suspended or cut off for too long: TLS does not take the certificate any more.
        log.warning("node-certificate-ended", not_after=leaf.not_after)
        stranger = self._called_with(None)
        return await self._issue(uri, lambda csr: stranger.recover(leaf.chain.decode(), leaf.key.decode(), csr))

    async def _sign(self, uri: str) -> Leaf:
        return await self._issue(uri, self.client().sign)

    async def _issue(self, uri: str, call: Callable[[str], Awaitable[SignResponse]]) -> Leaf:
        if objection := self._clock.objection(self._max_skew):
            raise IssueError(objection)
        try:
            key, csr = request(parse(uri))
            answer = await call(csr.decode())
            leaf = read_leaf(answer.chain.encode(), key)
        except (ClientError, CertificateError) as error:
            raise IssueError(str(error)) from error
        await self.trusted(answer.roots.encode())
        return leaf

    async def _own_renewed(self, leaf: Leaf) -> None:
        log.info("node-certificate-renewed", not_after=leaf.not_after)
        await kept(self._state.save_node_leaf, leaf)
        self._renewed()

    async def _signed(self, leaf: Leaf) -> None:
        log.info("certificate-issued", identity=leaf.uri, serial=leaf.serial, not_after=leaf.not_after)
        self._hold(leaf)
        await kept(self._state.save_leaf, leaf)
        self._changed()

    def _failed(self, uri: str, reason: str, pause: float) -> None:
        log.warning("certificate-not-issued", identity=uri, reason=reason, again_in=round(pause, 1))
        self._changed()


async def kept(save: Callable[[_T], None], what: _T) -> None:
    """To disk; what cannot be written is used all the same, from memory."""
    try:
        await trio.to_thread.run_sync(save, what)
    except StateError as error:
        log.error("not-saved", error=str(error))
