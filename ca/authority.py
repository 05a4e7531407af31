"""Who may hold which certificate: pure over a Store, and the only code that signs.

Four classes of identity, and for each exactly one way to a certificate:

    node       redeem       a one-time join token for that very node
               renew_node   the node itself, while its certificate lives, or within a window after it (see recovery)
    workload   sign_workload a node on which a registered workload has that identity
    operator   sign_operator whoever already is one (or sits at the centre's own machine)
    central    sign_central  the centre itself

A request that asks for another class, name or trust domain than its way allows is refused, never corrected. Each
certificate is recorded on disk before it is answered: what the store does not know, we never signed.

Roots and issuers are lists from the start; the newest issuing certificate that is not retired signs, and is replaced
at half its life (`renew_issuer`). What a retired one signed is good to its end: a leaf travels with its issuer, and
only roots are trusted. The private keys live outside the store (Keys); the root's is needed only to make an issuing
one, and can be kept elsewhere until then.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from cryptography.x509 import Certificate

from ca import x509
from ca.duration import Duration
from ca.identity import CentralIdentity, Identity, IdentityError, NodeIdentity, OperatorIdentity, WorkloadIdentity
from ca.lifetimes import renewal_time
from ca.store import (
    NOTHING,
    Batch,
    ConflictError,
    Keys,
    Store,
    StoredCertificate,
    StoredIssuer,
    StoredToken,
    StoreError,
)
from ca.tokens import JoinToken, TokenError

Chain = tuple[Certificate, ...]
"""Leaf first, then what a peer needs to get from it to a root."""

MAX_TTL = timedelta(days=7)
"""How long a join token may wait to be used."""


class Refused(Exception):
    """The certificate or token is not given; the message says why, and what would help."""


@dataclass(frozen=True, slots=True)
class Lives:
    """How long certificates live. `recovery` is how long after its end a node's certificate still lets that node prove
    itself (see recovery). `remembered` is how long tokens and certificates stay on record once they are of no use: that
    long a late user of a token still learns what became of it."""

    root: timedelta = timedelta(days=3650)
    issuing: timedelta = timedelta(days=365)
    node: timedelta = timedelta(days=7)
    workload: timedelta = timedelta(hours=24)
    operator: timedelta = timedelta(days=30)
    central: timedelta = timedelta(days=7)
    recovery: timedelta = timedelta(days=30)
    remembered: timedelta = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Authority:
    """The CA of one trust domain. Calls that sign or make tokens block on the disk; any thread may make them."""

    store: Store
    trust_domain: str
    roots: tuple[Certificate, ...]
    issuer: x509.Issuer = field(repr=False)
    keys: Keys = field(repr=False)
    lives: Lives = Lives()

    @classmethod
    def create(
        cls,
        store: Store,
        keys: Keys,
        trust_domain: str,
        now: datetime,
        lives: Lives = Lives(),
        along: Batch = NOTHING,
    ) -> "Authority":
        """Make root and issuing certificate in an empty store, in one commit with `along`; StoreError if there is a
        mesh already, IdentityError for what cannot be a trust domain."""
        if store.issuers():
            raise StoreError("the store holds a mesh already: choose another --dir, or remove that one first")
        root = x509.new_root(trust_domain, now, lives.root)
        issuing = x509.new_issuing(root, now, lives.issuing)
        # Keys first: a key without its certificate is waste, a certificate without its key would be a dead mesh.
        for issuer in (root, issuing):
            keys.write(x509.fingerprint(issuer.cert), x509.key_pem(issuer.key))
        stored = tuple(_stored(i.cert, role) for i, role in ((root, "root"), (issuing, "issuing")))
        store.commit(Batch(issuers=stored, meta={"trust-domain": trust_domain}).also(along))
        return cls(store, trust_domain, (root.cert,), issuing, keys, lives)

    @classmethod
    def open(cls, store: Store, keys: Keys, lives: Lives = Lives()) -> "Authority":
        """The authority that `create` made in this store; StoreError if none, or its issuing key is missing."""
        issuers = store.issuers()
        trust_domain = store.meta().get("trust-domain")
        certificates = {i.fingerprint: x509.load_chain(i.certificate)[0] for i in issuers}
        roots = tuple(certificates[i.fingerprint] for i in issuers if i.role == "root")
        signing = [i.fingerprint for i in issuers if i.role == "issuing" and not i.retired]
        if not (roots and signing and trust_domain):
            raise StoreError("the store holds no mesh yet: make one with culvert central init")
        key = x509.load_key(keys.read(signing[-1]))
        return cls(store, trust_domain, roots, x509.Issuer(certificates[signing[-1]], key), keys, lives)

    @property
    def root(self) -> Certificate:
        """The root above the issuer."""
        return next(r for r in self.roots if r.subject == self.issuer.cert.issuer)

    def issuers(self) -> list[Certificate]:
        """Every certificate that signs or has signed leaves here."""
        return [x509.load_chain(i.certificate)[0] for i in self.store.issuers() if i.role == "issuing"]

    @property
    def renews_issuer(self) -> datetime | None:
        """When the issuing certificate is to be replaced; None if it ends with the root."""
        return renewal_time(*x509.life(self.issuer.cert), self.root.not_valid_after_utc)

    def renew_issuer(self, now: datetime) -> "Authority":
        """The authority with a new issuing certificate below its root. What the old one signed stays good, its key
        signs no more. StoreError when the root's key is not here, Refused when the root has ended."""
        try:
            root = x509.Issuer(self.root, x509.load_key(self.keys.read(x509.fingerprint(self.root))))
            fresh = x509.new_issuing(root, now, self.lives.issuing)
        except x509.CertificateError as error:
            raise Refused(f"no new issuing certificate can be made: {error}") from error
        self.keys.write(x509.fingerprint(fresh.cert), x509.key_pem(fresh.key))
        records = (_stored(self.issuer.cert, "issuing", retired=True), _stored(fresh.cert, "issuing"))
        self.store.commit(Batch(issuers=records))
        return replace(self, issuer=fresh)

    def create_token(self, node: str, ttl: timedelta, now: datetime, address: str, along: Batch = NOTHING) -> JoinToken:
        """A one-time token with which `node` can join within `ttl`, at the centre's `address` (HOST:PORT). `along` is
        what the registry wants written in the same commit."""
        try:
            NodeIdentity(self.trust_domain, node)
        except IdentityError as error:
            raise Refused(str(error)) from error
        if not timedelta(0) < ttl <= MAX_TTL:
            asked = Duration(ttl.total_seconds())
            raise Refused(f"a token cannot live for {asked}: use more than nothing and at most {MAX_TTL.days} days")
        token = JoinToken.new(address, x509.fingerprint(self.root), node)
        stored = StoredToken(token.digest, node, (now + ttl).timestamp())
        self.store.commit(Batch(tokens=(stored,), forget_before=self._forgotten(now)).also(along))
        return token

    def redeem(self, token: JoinToken | str, csr: bytes | str, now: datetime, along: Batch = NOTHING) -> Chain:
        """A certificate for the node that `token` was made for. The token is burnt in the commit that records the
        certificate (and writes `along`); a refusal leaves it unburnt. ConflictError is only about `along`."""
        try:
            token = JoinToken.parse(token) if isinstance(token, str) else token
        except TokenError as error:
            raise Refused(str(error)) from error
        self.check_token(token, now)
        identity = NodeIdentity(self.trust_domain, token.node)
        facts = _granted(csr, identity, f"the token is for node {token.node}")
        try:
            return self._issue(facts, now, self.lives.node, node=token.node, burn=(token.digest,), along=along)
        except ConflictError:
            self.check_token(token, now)  # somebody may have been faster with it
            raise

    def sign_workload(
        self,
        node: NodeIdentity,
        csr: bytes | str,
        hosted: Callable[[WorkloadIdentity], bool],
        now: datetime,
        life: timedelta | None = None,
    ) -> Chain:
        """A workload's certificate, for the node (as its own certificate names it) that hosts such a workload; good for
        `life`, or else as long as `lives` has it."""
        self._ours(node)
        facts = _read(csr)
        if not isinstance(facts.identity, WorkloadIdentity) or facts.identity.trust_domain != self.trust_domain:
            raise Refused(f"{facts.identity} is no workload of {self.trust_domain}: a node can ask for no other here")
        if not hosted(facts.identity):
            raise Refused(
                f"no registered workload of node {node.name} has the identity {facts.identity}: apply it with "
                f"spec.node: {node.name} first"
            )
        return self._issue(facts, now, life or self.lives.workload, node=node.name)

    def renew_node(self, node: NodeIdentity, csr: bytes | str, now: datetime) -> Chain:
        """The node's next certificate, for the node as its present one names it. The caller has seen that the registry
        still knows the node."""
        self._ours(node)
        facts = _granted(csr, node, "a node renews its own certificate only")
        return self._issue(facts, now, self.lives.node, node=node.name)

    def sign_operator(self, name: str, csr: bytes | str, now: datetime) -> Chain:
        """An operator's certificate. The caller has seen that the asker is one, or sits at the centre's machine."""
        facts = _granted(csr, OperatorIdentity(self.trust_domain, name), f"it was asked for operator {name}")
        return self._issue(facts, now, self.lives.operator)

    def sign_central(self, name: str, csr: bytes | str, now: datetime) -> Chain:
        """The centre's own certificate. The chain ends with the root, so that a joining node, which knows the root's
        fingerprint only, can check it."""
        facts = _granted(csr, CentralIdentity(self.trust_domain, name), f"it was asked for centre {name}")
        return (*self._issue(facts, now, self.lives.central), self.root)

    def check_token(self, token: JoinToken, now: datetime) -> None:
        """Refused, with the reason, unless the token is good now."""
        again = f"have a new one made: culvert central token create --node {token.node}"
        if token.root not in {x509.fingerprint(r) for r in self.roots}:
            raise Refused("the token was made by the centre of another mesh: join there, or " + again)
        stored = [t for t in self.store.tokens(token.node) if token.proves(t.digest)]
        if not stored:
            raise Refused(f"the centre knows no such token for node {token.node}: {again}")
        if stored[0].used is not None:
            raise Refused(f"the token was used at {_time(stored[0].used)}, and joins one node once: {again}")
        if stored[0].expires <= now.timestamp():
            raise Refused(f"the token expired at {_time(stored[0].expires)}: {again}")

    def _ours(self, node: NodeIdentity) -> None:
        if node.trust_domain != self.trust_domain:
            raise Refused(f"{node} is not of this mesh, {self.trust_domain}")

    def _issue(
        self,
        facts: x509.CsrFacts,
        now: datetime,
        life: timedelta,
        *,
        node: str = "",
        burn: tuple[str, ...] = (),
        along: Batch = NOTHING,
    ) -> Chain:
        try:
            leaf = x509.issue(self.issuer, facts.identity, facts.public_key, now, life)
        except x509.CertificateError as error:
            raise Refused(str(error)) from error
        end = leaf.not_valid_after_utc
        of_use = end + self.lives.recovery if isinstance(facts.identity, NodeIdentity) else end
        record = StoredCertificate(
            serial=x509.serial(leaf),
            identity=str(facts.identity),
            node=node,
            not_after=end.timestamp(),
            issuer=x509.fingerprint(self.issuer.cert),
            issued=now.timestamp(),
            of_use=of_use.timestamp(),
        )
        whole = Batch(burn=burn, burnt=now.timestamp(), certificates=(record,), forget_before=self._forgotten(now))
        self.store.commit(whole.also(along))
        return (leaf, self.issuer.cert)

    def _forgotten(self, now: datetime) -> float:
        return (now - self.lives.remembered).timestamp()


def _read(csr: bytes | str) -> x509.CsrFacts:
    try:
        return x509.read_csr(csr)
    except x509.CsrError as error:
        raise Refused(str(error)) from error


def _granted(csr: bytes | str, identity: Identity, why: str) -> x509.CsrFacts:
    facts = _read(csr)
    if facts.identity != identity:
        raise Refused(f"the signing request is for {facts.identity}, but {why}")
    return facts


def _stored(cert: Certificate, role: str, *, retired: bool = False) -> StoredIssuer:
    return StoredIssuer(x509.fingerprint(cert), role, x509.pem(cert), cert.not_valid_after_utc.timestamp(), retired)


def _time(unix: float) -> str:
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M:%S} UTC"
