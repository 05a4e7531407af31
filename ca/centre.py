"""What the centre does: every call of the contract as a plain method, whoever asks. Changes go through its head."""

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import msgspec
import structlog
import trio

from ca import discovered, recovery, registry, x509
from ca.authority import Authority, Chain, Refused
from ca.contract import (
    ApplyResponse,
    FoundRequest,
    FoundResponse,
    JoinRequest,
    JoinResponse,
    Listing,
    NotRegistered,
    RecoverRequest,
    SignResponse,
    Status,
    TokenResponse,
)
from ca.duration import Duration
from ca.head import Head
from ca.identity import Identity, IdentityError, NodeIdentity, OperatorIdentity, WorkloadIdentity, parse
from ca.lifetimes import USUAL, Thresholds
from ca.metrics import Facts
from ca.registry import Outcome, State
from ca.resources.kinds import KINDS, Resource, encode
from ca.resources.metadata import Key, Metadata
from ca.resources.node import Discovery, Node, NodeSpec
from ca.resources.revocation import Revocation, RevocationSpec, revocation_name, write_time
from ca.resources.workload import canonical_address
from ca.revoking import completed, restored
from ca.sessions import STALL, Sessions
from ca.store import Batch, Store, StoredCertificate
from ca.tokens import JoinToken, TokenError
from ca.trust import Trust

REMEMBERED = timedelta(days=1)
"""How long a revocation of certificates is kept after the last of them has ended."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Centre:
    """State, authority and watchers of one mesh. `advertise` (HOST:PORT) goes into join tokens. Whoever opened the
    store closes it, after the last call has ended."""

    def __init__(
        self,
        store: Store,
        authority: Authority,
        *,
        advertise: str,
        tick: float = 0.05,
        stall: float = STALL,
        clock: Callable[[], float] = time.time,
        thresholds: Thresholds = USUAL,
    ) -> None:
        self.authority = authority
        self.advertise = advertise
        self._store = store
        self._clock = clock
        self._refused: dict[str, list[NotRegistered]] = {}
        self._head = Head(store, tick)
        self.trust = Trust(store, lambda: self.state, self.now, thresholds)
        self.feed = self._head.feed
        self.sessions = Sessions(self.feed, self.roots, clock, stall=stall)

    @property
    def state(self) -> State:
        """The latest State, on disk already."""
        return self._head.state

    @property
    def trust_domain(self) -> str:
        """The mesh's."""
        return self.authority.trust_domain

    @property
    def workload_life(self) -> timedelta:
        """How long the next certificates of workloads are good for: as the mesh says, else as the centre is set."""
        mesh = self.state.mesh
        said = mesh.spec.certificate_life if mesh else None
        return timedelta(seconds=Duration.read(said)) if said else self.authority.lives.workload

    def roots(self) -> str:
        """PEM of the roots to trust."""
        return x509.pem(*self.authority.roots).decode()

    async def apply(self, resources: Iterable[Resource], *, dry_run: bool = False) -> ApplyResponse:
        """Put objects, all or none. The tokens of a node that is revoked are of no use any more. RegistryError."""
        given = list(resources)
        wanted = await self._completed(given)
        identities = [parse(r.spec.identity) for r in given if isinstance(r, Revocation) and r.spec.identity]
        response = await self._head.change(
            lambda state: registry.change(state, wanted, discovered.outlawed(state, wanted)),
            commit=self._voiding([i for i in identities if isinstance(i, NodeIdentity)]),
            dry_run=dry_run,
        )
        if wanted is not given and not dry_run and (more := await self._completed(wanted)) != wanted:
            # Signed while we revoked: on record by now, since nothing is signed for them any more.
            await self._head.change(lambda state: registry.change(state, more))
        return response

    async def _completed(self, resources: list[Resource]) -> list[Resource]:
        """The objects, Revocations with the serials of what their identity stands for."""
        if not any(isinstance(r, Revocation) for r in resources):
            return resources
        now, store, window = self.now(), self._store, self.authority.lives.recovery

        def complete() -> list[Resource]:
            return [
                completed(r, _concerned(store, r), now, window) if isinstance(r, Revocation) else r for r in resources
            ]

        return await trio.to_thread.run_sync(complete)

    async def delete(self, keys: Iterable[Key]) -> ApplyResponse:
        """Delete objects, all or none. What a Node was given is revoked with it, and so are tokens for it: they
        must not count again because the name is used again. RegistryError."""
        gone = list(keys)
        nodes = [NodeIdentity(self.trust_domain, k.name) for k in gone if k.kind == "Node"]
        left = await self._given(nodes)
        response = await self._head.change(
            lambda state: registry.change(state, left, [*gone, *discovered.orphans(state, gone)]),
            commit=self._voiding(nodes),
        )
        if nodes and (more := await self._given(nodes)) != left:  # signed meanwhile, as in `apply`
            response = await self._head.change(lambda state: registry.change(state, more))
        return response

    def _voiding(self, nodes: Iterable[NodeIdentity]) -> Callable[[Batch], None]:
        names = tuple(n.name for n in nodes if n.trust_domain == self.trust_domain)
        return lambda batch: self._store.commit(replace(batch, void=names))

    async def _given(self, nodes: Iterable[NodeIdentity]) -> list[Revocation]:
        """Of what these have been given and has not ended: in each case with what is revoked of it already."""
        named = []
        for node in nodes:
            name = revocation_name(node)
            known = self.state.objects.get(Key("Revocation", "", name))
            serials = known.spec.serials if isinstance(known, Revocation) else ()
            if not isinstance(known, Revocation) or not known.spec.identity:
                why, now = f"node {node.name} was deleted", write_time(self.now())
                named.append(Revocation(Metadata(name), RevocationSpec(str(node), serials, why, now)))
        whole = await self._completed(list(named))
        return [rest for r in whole if isinstance(r, Revocation) and (rest := restored(r)) is not None]

    async def label(self, key: Key, labels: dict[str, str | None]) -> ApplyResponse:
        """Set and remove labels of one object. RegistryError."""
        return await self._head.change(lambda state: registry.label(state, key, labels))

    async def create_token(self, node: str, ttl: float, discovery: Discovery | None = None) -> TokenResponse:
        """A one-time token; its Node is made if there is none. With `discovery` that is what the node may register
        from now on. Refused or RegistryError."""
        made: list[JoinToken] = []
        now = self.now()
        ttl_s = _seconds(ttl)

        def commit(batch: Batch) -> None:
            made.append(self.authority.create_token(node, ttl_s, now, self.advertise, batch))

        def invited(state: State) -> Outcome:
            self._trusted(state, node)
            known = state.node(node)
            try:
                wanted = known or Node(metadata=Metadata(node))
                if discovery is not None:
                    wanted = msgspec.structs.replace(
                        wanted, spec=msgspec.structs.replace(wanted.spec, discovery=discovery)
                    )
                return registry.change(state, [wanted], discovered.outlawed(state, [wanted]))
            except ValueError as e:
                raise Refused(str(e)) from e

        await self._head.change(invited, commit=commit, always=True)
        log.info("token-made", node=node, expires=(now + ttl_s).isoformat(timespec="seconds"))
        return TokenResponse(str(made[0]), (now + ttl_s).timestamp())

    async def join(self, request: JoinRequest) -> JoinResponse:
        """A certificate for a token, and the address where the node can be dialled. Refused or RegistryError; in both
        cases the token is still good."""
        try:
            token = JoinToken.parse(request.token)
            spec = NodeSpec(canonical_address(request.address), request.tunnel_port)
        except (TokenError, ValueError) as e:
            raise Refused(str(e)) from e
        # Before anything else, so that a stranger learns nothing of the mesh from what else might be wrong.
        await trio.to_thread.run_sync(self.authority.check_token, token, self.now())
        made: list[Chain] = []

        def commit(batch: Batch) -> None:
            now = self.now()
            joined_at = {**batch.meta, _joined(token.node): str(int(now.timestamp()))}
            made.append(self.authority.redeem(token, request.csr, now, replace(batch, meta=joined_at)))

        def joined(state: State) -> Outcome:
            known = state.node(token.node)
            self._trusted(state, token.node)
            if known is None:
                raise Refused(f"node {token.node} is no part of the mesh any more: have a new token made for it")
            kept = msgspec.structs.replace(spec, discovery=known.spec.discovery)
            return registry.change(state, [msgspec.structs.replace(known, spec=kept)])

        await self._head.change(joined, commit=commit, always=True)
        log.info("node-joined", node=token.node, address=request.address)
        return JoinResponse(token.node, self.trust_domain, x509.pem(*made[0]).decode(), self.roots())

    async def renew(self, node: NodeIdentity, csr: str) -> SignResponse:
        """The node's next certificate. Refused."""
        self._known(node)
        return await self._signed(lambda: self.authority.renew_node(node, csr, self.now()), node)

    async def recover(self, request: RecoverRequest, binding: bytes) -> SignResponse:
        """The next certificate of a node whose last one has ended, for the proof it makes on the connection with this
        `binding`. Refused."""
        issuers = await trio.to_thread.run_sync(self.authority.issuers)
        proven = recovery.check(request, binding, issuers, self.now(), self.authority.lives.recovery)
        node = proven.node
        if why := self.state.revoked.objection(node, proven.serial):
            raise Refused(why if self.state.revoked.identity(node) else f"{why}: {recovery.again(node)}")
        self._known(node)
        known = self.state.node(node.name)
        if known is None or not known.spec.address:
            raise Refused(f"node {node.name} was deleted and has not joined again: {recovery.again(node)}")
        meta = await trio.to_thread.run_sync(self._store.meta)  # long, so only for who has proven himself
        if float(meta.get(_joined(node.name), 0)) > proven.issued.timestamp():
            raise Refused(f"node {node.name} has joined anew since that certificate: {recovery.again(node)}")
        if self.sessions.connected(node.name):
            # No session outlives its certificate, so the node that is there is another than the one that asks.
            log.warning("recovery-refused", node=node.name, serial=proven.serial, why="the node is connected")
            raise Refused(f"node {node.name} is connected right now: whoever asks has an old copy of its key")
        log.warning("node-recovers", node=node.name, serial=proven.serial)
        return await self._signed(lambda: self.authority.renew_node(node, request.csr, self.now()), node)

    async def sign(self, node: NodeIdentity, csr: str) -> SignResponse:
        """A certificate for a workload of the node. Refused."""
        self._known(node)
        state = self.state

        def hosted(identity: WorkloadIdentity) -> bool:
            if why := state.objection(identity):
                raise Refused(why)
            return state.hosts(node.name, identity)

        life = self.workload_life
        return await self._signed(lambda: self.authority.sign_workload(node, csr, hosted, self.now(), life), node)

    async def found(self, node: NodeIdentity, request: FoundRequest) -> FoundResponse:
        """Register what the node found, as far as it may. Refused when it is no part of the mesh."""
        self._known(node)
        told: list[NotRegistered] = []

        def adopted(state: State) -> Outcome:
            outcome, told[:] = discovered.adopt(state, node.name, request)
            return outcome

        response = await self._head.change(adopted)
        if told != self._refused.get(node.name, []):
            # A node asks again and again; the log hears of it once.
            self._refused[node.name] = told
            log.info("not-registered", node=node.name, count=len(told), first=msgspec.to_builtins(told[:5]))
        return FoundResponse(response.revision, told)

    async def sign_operator(self, name: str, csr: str) -> SignResponse:
        """A certificate for an operator, asked for at this machine. Refused."""
        operator = OperatorIdentity(self.trust_domain, name)
        if why := self.objection(operator):
            raise Refused(f"{why}: culvert ca unrevoke operator {name}")
        return await self._signed(lambda: self.authority.sign_operator(name, csr, self.now()), operator)

    async def renew_issuer(self) -> bool:
        """Replace the issuing certificate if that is due. StoreError, Refused."""
        due = self.authority.renews_issuer
        if due is None or self.now() < due:
            return False
        self.authority = await trio.to_thread.run_sync(self.authority.renew_issuer, self.now())
        return True

    async def forget_revocations(self) -> list[str]:
        """Delete the revocations of certificates that have ended since, some time ago as clocks differ."""
        before = self.now() - REMEMBERED
        ended = [k for k, r in self.state.revoked.objects.items() if r.ended is not None and r.ended < before]
        if ended:
            await self.delete(ended)
        return [k.name for k in ended]

    def list(self, kind: str, namespace: str, name: str) -> Listing:
        """The objects of a kind (all kinds if empty), narrowed by namespace and name unless those are empty."""
        state = self.state
        if kind and kind not in KINDS:
            raise Refused(f"{kind!r} is no kind; known: {', '.join(KINDS)}")
        keys = sorted(
            k for k in state.objects if kind in ("", k.kind) and namespace in ("", k.namespace) and name in ("", k.name)
        )
        return Listing(state.revision, [msgspec.Raw(encode(state.objects[k])) for k in keys])

    def status(self) -> Status:
        """Every node and how far it is."""
        state = self.state
        workloads = sum(len(hosted) for hosted in state.hosted.values())
        return Status(
            state.revision,
            self.trust_domain,
            self.sessions.status(state),
            workloads,
            self._clock(),
            self.trust.alarms,
        )

    def facts(self) -> Facts:
        """What a scrape of the metrics shows."""
        status = self.status()
        return Facts(
            self.trust.overview,
            status.revision,
            len(status.nodes),
            sum(n.connected for n in status.nodes),
            status.workloads,
            len(self.state.revoked.objects),
        )

    def known(self, node: NodeIdentity) -> bool:
        """Whether the mesh still has that node: a certificate outlives a deletion, and a revocation."""
        return node.trust_domain == self.trust_domain and self.state.member(node.name)

    def objection(self, identity: Identity, serial: str = "") -> str:
        """Why nobody may speak as `identity` any more, or with the certificate of that serial; empty if somebody
        may."""
        return self.state.objection(identity, serial)

    def _trusted(self, state: State, node: str) -> None:
        try:
            why = state.objection(NodeIdentity(self.trust_domain, node))
        except IdentityError as e:
            raise Refused(str(e)) from e
        if why:
            raise Refused(f"{why}: culvert ca unrevoke node {node} comes first")

    def _known(self, node: NodeIdentity) -> None:
        if not self.known(node):
            raise Refused(f"node {node.name} is no part of the mesh any more: join again with a new token")

    async def _signed(self, sign: Callable[[], Chain], asker: Identity) -> SignResponse:
        chain = await trio.to_thread.run_sync(sign)
        if why := self.objection(asker):
            raise Refused(why)  # meanwhile: `apply` has seen either us revoked or what we signed on record
        log.info("signed", identity=str(x509.identity_of(chain[0])), until=chain[0].not_valid_after_utc.isoformat())
        return SignResponse(x509.pem(*chain).decode(), self.roots())

    def now(self) -> datetime:
        """The time by the clock of this centre."""
        return datetime.fromtimestamp(self._clock(), UTC)


def _concerned(store: Store, revocation: Revocation) -> list[StoredCertificate]:
    """Every certificate on record that the revocation could name: looked up, since the record may be long."""
    spec = revocation.spec
    found = [c for serial in spec.serials for c in store.certificates(serial=serial)]
    if spec.identity:
        found += store.certificates(spec.identity)
        if isinstance(node := parse(spec.identity), NodeIdentity):
            found += store.certificates(node=node.name)
    return found


def _joined(node: str) -> str:
    """Under which name the store has when the node last joined: no certificate from before that recovers."""
    return f"joined/{node}"


def _seconds(ttl: float) -> timedelta:
    try:
        return timedelta(seconds=ttl)
    except (OverflowError, ValueError) as e:
        raise Refused(f"a token cannot live for {ttl} seconds") from e
