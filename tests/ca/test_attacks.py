"""Attacks on a running centre, over its real port: each is refused, the log says clearly why, and nothing else changes.

`Watched.refuses` is the judge of all three: what the log got, and the whole store before and after. The same attacks on
the parts (requests, certificates, tokens, HTTP) are in test_x509, test_authority, test_tokens, test_http, test_channel;
revoked callers in test_revoked_callers, recovery in test_recovery, the tunnel port in netns/test_attacks.
"""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import structlog
import trio
from cryptography import x509 as cx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca import endpoint, tls, x509
from ca.channel import connect
from ca.client import Client, ClientError, Refusal
from ca.contract import VERSION, Delta, Hello, Private, TokenRequest
from ca.identity import CentralIdentity, Identity, NodeIdentity, OperatorIdentity, WorkloadIdentity
from ca.pages import open_listener, serve_pages
from ca.resources.metadata import Metadata
from ca.resources.revocation import Revocation, RevocationSpec
from ca.tokens import JoinToken
from tests.ca.objects import node, workload
from tests.ca.running import DOMAIN, Clock, Credentials, Running, running

A, B = NodeIdentity(DOMAIN, "a"), NodeIdentity(DOMAIN, "b")
WEB, DB = WorkloadIdentity(DOMAIN, "shop", "web"), WorkloadIdentity(DOMAIN, "shop", "db")
HOUR = timedelta(hours=1)
KEY = x509.new_key()
RSA_KEY = rsa.generate_private_key(65537, 2048)


@dataclass
class Watched:
    """A centre with nodes a (workload web) and b (workload db), and its log."""

    running: Running
    clock: Clock

    def _everything(self) -> object:
        store = self.running.centre._store
        records = (store.contents(), store.tokens(), store.certificates(), store.issuers(), store.meta())
        return self.running.centre.state.revision, records

    @contextlib.contextmanager
    def refuses(self, *said: str, also: str = "") -> Iterator[None]:
        """What the block does is refused: a line of the log has every one of `said` (and some line `also`), and the
        store is as it was."""
        before = self._everything()
        with structlog.testing.capture_logs() as logs:
            yield
        assert self._everything() == before
        refusals = [e for e in logs if e["event"] in ("refused", "connection-failed", "session-ended", "page-refused")]
        assert any(all(s in str(e) for s in said) for e in refusals), (said, logs)
        assert any(also in str(e) for e in refusals)
        assert not [e for e in logs if e["event"] in ("signed", "changed", "bug", "node-joined", "token-made")]


@pytest.fixture
async def centre(tmp_path: Path) -> AsyncIterator[Watched]:
    clock = Clock()
    async with running(tmp_path / "centre", clock) as made:
        await made.centre.apply([node("a", "10.0.0.1"), node("b", "10.0.0.2")])
        await made.centre.apply([workload("web", "a", uid=1), workload("db", "b", uid=2)])
        yield Watched(made, clock)


# Tokens


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("forged", "knows no such token for node c"),
        ("for another node", "knows no such token for node d"),
        ("replayed", "the token was used at"),
        ("expired", "the token expired at"),
        ("of another mesh", "made by the centre of another mesh"),
        ("garbage", "join token"),
        ("empty", "join token"),
        ("huge", "at most 4096 are read"),
    ],
)
async def test_tokens_that_open_nothing(centre: Watched, case: str, why: str) -> None:
    good = JoinToken.parse((await centre.running.operator().create_token(TokenRequest("c", ttl=60))).token)
    presented, name = str(good), "c"
    match case:
        case "forged":
            presented = str(JoinToken.new(good.address, good.root, "c"))
        case "for another node":
            presented, name = str(JoinToken(good.address, good.root, "d", good.secret)), "d"
        case "replayed":
            await centre.running.join(presented, "c", "10.0.0.3")
        case "expired":
            centre.clock.ahead = 61
        case "of another mesh":
            presented = str(JoinToken(good.address, "0" * 64, "c", good.secret))
        case "garbage":
            presented = "hunter2"
        case "empty":
            presented = ""
        case "huge":
            presented = "culvert1." + "A" * 30_000
    csr = x509.make_csr(KEY, NodeIdentity(DOMAIN, name)).decode()
    body = msgspec.json.encode({"token": presented, "csr": csr, "address": "10.0.0.4"})
    with centre.refuses(why, "POST /v1/join", "somebody without a certificate"):
        response = await centre.running.raw(None, "POST", "/v1/join", body=body)
        assert response.status == 403
        assert why.encode() in response.body


# Signing requests


def _csr(*names: cx.GeneralName, key: object = KEY, extra: cx.ExtensionType | None = None) -> str:
    builder = cx.CertificateSigningRequestBuilder().subject_name(cx.Name([]))
    if names:
        builder = builder.add_extension(cx.SubjectAlternativeName(names), critical=True)
    if extra is not None:
        builder = builder.add_extension(extra, critical=False)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


def _uri(text: object = WEB) -> cx.UniformResourceIdentifier:
    return cx.UniformResourceIdentifier(str(text))


def _of_another(identity: Identity) -> str:
    """The request of one key, signed with another."""
    csr = cx.load_pem_x509_csr(x509.make_csr(KEY, identity))
    der = bytearray(csr.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return cx.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("csr", "why"),
    [
        (_csr(), "no URI SANs"),
        (_csr(_uri(), _uri(DB)), "2 URI SANs"),
        (_csr(_uri(), cx.DNSName("web.shop")), "no URI: DNSName"),
        (_csr(_uri("https://shop.example/")), "must begin with spiffe://"),
        (_csr(_uri("spiffe://other.example/ns/shop/sa/web")), "is no workload of shop.example"),
        (_csr(_uri(DB)), "no registered workload of node a has the identity"),
        (_csr(_uri(A)), "is no workload of shop.example"),
        (_csr(_uri(OperatorIdentity(DOMAIN, "admin"))), "is no workload of shop.example"),
        (_csr(_uri(CentralIdentity(DOMAIN, "central"))), "is no workload of shop.example"),
        (_csr(_uri(), extra=cx.BasicConstraints(ca=True, path_length=None)), "asks for BasicConstraints"),
        (_csr(_uri(), extra=cx.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])), "asks for ExtendedKeyUsage"),
        (_csr(_uri(), key=RSA_KEY), "not on the curve P-256"),
        (_csr(_uri(), key=ec.generate_private_key(ec.SECP384R1())), "not on the curve P-256"),
        (_csr(_uri(), key=ed25519.Ed25519PrivateKey.generate()), "not on the curve P-256"),
        (_of_another(WEB), "not signed with its own key"),
        (_csr(_uri()) + " " * x509.MAX_CSR, "at most 16384"),
        (_csr(_uri())[:-60], "no signing request"),
        ("", "no signing request"),
        ("\0" * 1000, "no signing request"),
    ],
)
async def test_requests_that_a_node_may_not_make(centre: Watched, csr: str, why: str) -> None:
    with centre.refuses(why, "POST /v1/sign", str(A)), pytest.raises(Refusal, match=why):
        await centre.running.node("a").sign(csr)
    if "workload" not in why:
        with centre.refuses(why, "POST /v1/renew", str(A)), pytest.raises(Refusal, match=why):
            await centre.running.node("a").renew(csr)


async def test_a_request_larger_than_any_body_is_not_read(centre: Watched) -> None:
    header = {"headers": [("Content-Length", str(2**30))]}
    with centre.refuses("the body is too large", str(A)):
        credentials = centre.running.credentials(A)
        host, port = endpoint.split(centre.running.address)
        context = tls.context(x509.load_chain(centre.running.roots), credentials, server=False)
        async with await connect(host, port, context, expect=CentralIdentity) as channel:
            head = "".join(f"{k}: {v}\r\n" for k, v in header["headers"])
            await channel.send_all(f"POST /v1/sign HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
            assert (await channel.receive_some()).startswith(b"HTTP/1.1 413")


# Certificates


def _shown(
    centre: Running,
    uri: object,
    *,
    issuer: x509.Issuer | None = None,
    begins: timedelta = -HOUR,
    ends: timedelta = HOUR,
    purposes: tuple[cx.ObjectIdentifier, ...] | None = (
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    ),
    authority: bool = False,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = KEY,
) -> Credentials:
    """A certificate with one thing about it that ours never have."""
    issuer = issuer or centre.centre.authority.issuer
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        cx.CertificateBuilder()
        .serial_number(cx.random_serial_number())
        .subject_name(cx.Name([]))
        .issuer_name(issuer.cert.subject)
        .public_key(key.public_key())
        .not_valid_before(now + begins)
        .not_valid_after(now + ends)
        .add_extension(cx.SubjectAlternativeName([_uri(uri)]), critical=True)
        .add_extension(cx.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(cx.KeyUsage(True, key_cert_sign=authority, crl_sign=False, **usage), critical=True)
    )
    if purposes is not None:
        builder = builder.add_extension(cx.ExtendedKeyUsage(purposes), critical=False)
    cert = builder.sign(issuer.key, hashes.SHA256())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return x509.pem(cert, issuer.cert), private


Show = Callable[[Running], Credentials]
OTHER = x509.new_issuing(x509.new_root(DOMAIN, datetime.now(UTC), 24 * HOUR), datetime.now(UTC), 2 * HOUR)


def _below_a_leaf(centre: Running) -> Credentials:
    """Signed with the key of an ordinary leaf."""
    key = x509.new_key()
    issuer = centre.centre.authority.issuer
    leaf = x509.issue(issuer, A, key.public_key(), datetime.now(UTC), HOUR)
    chain, private = _shown(centre, OperatorIdentity(DOMAIN, "admin"), issuer=x509.Issuer(leaf, key))
    return chain + x509.pem(issuer.cert), private


@pytest.mark.parametrize(
    ("show", "why"),
    [
        (lambda c: _shown(c, A, issuer=OTHER), "leads to no root that is trusted here"),
        (lambda c: _shown(c, A, begins=-2 * HOUR, ends=-HOUR), "the peer's certificate ended at"),
        (lambda c: _shown(c, A, begins=HOUR, ends=2 * HOUR), "is not valid before"),
        (lambda c: _shown(c, A, purposes=None), "extended key usages"),
        (lambda c: _shown(c, A, purposes=(ExtendedKeyUsageOID.SERVER_AUTH,)), "is not made for this side of TLS"),
        (lambda c: _shown(c, A, purposes=(ExtendedKeyUsageOID.CLIENT_AUTH,)), "extended key usages"),
        (lambda c: _shown(c, A, authority=True), "is a CA's: it may sign, not speak"),
        (_below_a_leaf, "is signed by itself"),  # a leaf has no name, so its child looks like this
        (lambda c: _shown(c, "spiffe://shop.example/nobody"), "it must read"),
        (lambda c: _shown(c, "https://shop.example/node/a"), "must begin with spiffe://"),
    ],
    ids=["foreign root", "expired", "not yet valid", "no EKU", "server only", "client only", "CA", "below a leaf",
         "no identity", "no spiffe"],
)  # fmt: skip
async def test_certificates_that_prove_nothing(centre: Watched, show: Show, why: str) -> None:
    shown = show(centre.running)
    with centre.refuses(why):
        client = Client.over_tls(centre.running.address, DOMAIN, centre.running.roots, shown)
        with pytest.raises(ClientError) as refused:
            await client.renew(x509.make_csr(KEY, A).decode())
        assert not isinstance(refused.value, Refusal)
        await trio.sleep(0.05)  # the server's last word may be later than the client's


@pytest.mark.parametrize(
    ("identity", "call"),
    [
        (WEB, ("POST", "/v1/sign")),
        (WEB, ("POST", "/v1/apply")),
        (WEB, ("GET", "/v1/session")),
        (A, ("POST", "/v1/apply")),
        (A, ("GET", "/v1/resources")),
        (A, ("GET", "/v1/trust")),
        (A, ("POST", "/v1/operators")),
        (OperatorIdentity(DOMAIN, "admin"), ("POST", "/v1/sign")),
        (OperatorIdentity(DOMAIN, "admin"), ("POST", "/v1/operators")),
        (OperatorIdentity(DOMAIN, "admin"), ("GET", "/v1/session")),
        (CentralIdentity(DOMAIN, "other"), ("POST", "/v1/apply")),
        ("spiffe://other.example/node/a", ("POST", "/v1/sign")),
        ("spiffe://other.example/node/a", ("GET", "/v1/session")),
        ("spiffe://other.example/operator/admin", ("POST", "/v1/apply")),
    ],
    ids=lambda value: str(value),
)
async def test_certificates_of_another_class_or_trust_domain(
    centre: Watched, identity: object, call: tuple[str, str]
) -> None:
    """Signed by our own issuer, so that TLS has nothing against them."""
    shown = _shown(centre.running, identity)
    with centre.refuses("the caller is", str(identity), call[1]):
        response = await centre.running.raw(shown, *call, body=b"{}" if call[0] == "POST" else b"")
        assert response.status == 403


async def test_a_revoked_certificate_and_a_revoked_node(centre: Watched) -> None:
    shown = centre.running.credentials(A)
    serial = x509.serial(x509.load_chain(shown[0])[0])
    client = Client.over_tls(centre.running.address, DOMAIN, centre.running.roots, shown)
    for spec, why in (
        (RevocationSpec(serials=(serial,), reason="copied"), f"certificate {serial} is revoked (copied)"),
        (RevocationSpec(str(A), reason="stolen"), f"{A} is revoked (stolen)"),
    ):
        await centre.running.centre.apply([Revocation(Metadata("r"), spec)])
        with centre.refuses(why, "POST /v1/sign"), pytest.raises(Refusal):
            await client.sign(x509.make_csr(KEY, WEB).decode())
        with centre.refuses(why, "/v1/session"), pytest.raises(Refusal):
            async with client.session():
                pass


# What is another node's


async def test_a_node_learns_nothing_of_how_another_recognises_its_workloads(centre: Watched) -> None:
    """However it begins: as somebody who knows nothing, as somebody up to date, with another's name in its greeting."""
    client = centre.running.node("b")
    hellos = [
        Hello(VERSION, "t"),
        Hello(VERSION, "node a", centre.running.centre.state.revision, "no such incarnation"),
    ]
    for hello in hellos:
        async with client.session() as session:
            await session.send(hello)
            private: list[Private] = []
            put: list[bytes] = []
            with trio.fail_after(5):
                while not put or not private:
                    match await session.receive():
                        case Private() as frame:
                            private.append(frame)
                        case Delta() as delta:
                            put += [bytes(raw) for raw in delta.put]
        assert [(m.name, m.match.uid) for p in private for m in p.matches] == [("db", 2)]
        web = next(raw for raw in put if b'"web"' in raw and b'"Workload"' in raw)
        assert b"match" not in web


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (b"\xff\xff\xff\xff{}", "frame"),
        (b"\0\0\0\x02{}", "frame"),
        (b"GET / HTTP/1.1\r\n\r\n", "frame"),
    ],
)
async def test_garbage_in_a_session(centre: Watched, first: bytes, why: str) -> None:
    host, port = endpoint.split(centre.running.address)
    context = tls.context(x509.load_chain(centre.running.roots), centre.running.credentials(A), server=False)
    with centre.refuses(why):
        async with await connect(host, port, context, expect=CentralIdentity) as channel:
            await channel.send_all(
                b"GET /v1/session HTTP/1.1\r\nHost: x\r\nUpgrade: culvert\r\nConnection: upgrade\r\n\r\n" + first
            )
            with trio.fail_after(15), contextlib.suppress(trio.BrokenResourceError):
                while await channel.receive_some():
                    pass
        await trio.sleep(0.05)


# Those who do not even speak TLS, or HTTP, or at all


@pytest.mark.parametrize(
    "said",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 1000, bytes(range(256)) * 300, b"\x16\x03\x01", b"SSH-2.0-x\r\n"],
)
async def test_no_tls_on_the_port(centre: Watched, said: bytes) -> None:
    host, port = endpoint.split(centre.running.address)
    with centre.refuses("127.0.0.1"):
        async with await trio.open_tcp_stream(host, port) as stream:
            with contextlib.suppress(trio.BrokenResourceError):
                await stream.send_all(said)
                await stream.send_eof()
                with trio.fail_after(15):
                    while await stream.receive_some(1000):
                        pass
        await trio.sleep(0.05)
    assert (await centre.running.operator().status()).revision > 0


@pytest.mark.parametrize("caller", [None, A], ids=["stranger", "node"])
@pytest.mark.parametrize(
    "said", [b"\0" * 100, b"GET /" + b"x" * 20_000, b"GET / HTTP/1.1\r\n\r\n", b"CONNECT x HTTP/1.1\r\nHost: x\r\n\r\n"]
)
async def test_no_http_inside_tls(centre: Watched, caller: Identity | None, said: bytes) -> None:
    host, port = endpoint.split(centre.running.address)
    credentials = centre.running.credentials(caller) if caller else None
    context = tls.context(x509.load_chain(centre.running.roots), credentials, server=False)
    with centre.refuses(str(caller) if caller else "somebody without a certificate", "'status': 4"):
        async with await connect(host, port, context, expect=CentralIdentity) as channel:
            await channel.send_all(said)
            with trio.fail_after(15):
                assert (await channel.receive_some()).startswith(b"HTTP/1.1 4")


@pytest.mark.slow
async def test_slow_ones_are_cut_and_cost_the_others_nothing(centre: Watched) -> None:
    """One says nothing, one drips its handshake, one drips its request; a member is answered all the while."""
    host, port = endpoint.split(centre.running.address)
    context = tls.context(x509.load_chain(centre.running.roots), None, server=False)
    ended: list[str] = []

    async def drip(stream: trio.abc.Stream, what: bytes, name: str) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                async with trio.open_nursery() as nursery:

                    async def end() -> None:
                        with contextlib.suppress(trio.BrokenResourceError):
                            while await stream.receive_some(1000):
                                pass
                        nursery.cancel_scope.cancel()

                    nursery.start_soon(end)
                    for byte in what * 1000:
                        await stream.send_all(bytes([byte]))
                        await trio.sleep(0.5)
        ended.append(name)

    with centre.refuses("the request did not arrive in time", also="handshake"):
        with trio.fail_after(40):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(drip, await trio.open_tcp_stream(host, port), b"", "silent")
                nursery.start_soon(drip, await trio.open_tcp_stream(host, port), b"\x16\x03\x01\x02\x00", "hello")
                channel = await connect(host, port, context, expect=CentralIdentity)
                nursery.start_soon(drip, channel, b"GET /v1/status HTTP/1.1\r\nA: ", "request")
                while len(ended) < 3:
                    with trio.fail_after(2):
                        await centre.running.operator().status()
                    await trio.sleep(0.2)


# The other ports


async def test_garbage_on_the_page_for_metrics() -> None:
    listener = await open_listener("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]

    async def page() -> tuple[int, str, bytes]:
        return 200, "text/plain", b"fine\n"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve_pages, listener, {"/metrics": page})
        for said in (
            b"\0" * 100,
            b"GET /" + b"x" * 20_000,
            b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n",
        ):
            with structlog.testing.capture_logs() as logs:
                async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                    await stream.send_all(said)
                    assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 4")
            assert [e["event"] for e in logs] == ["refused"], (said, logs)
        nursery.cancel_scope.cancel()


async def test_garbage_on_the_socket_of_this_machine(centre: Watched) -> None:
    with centre.refuses("root at the centre's own machine", "'status': 4"):
        async with await trio.open_unix_socket(centre.running.settings.socket) as stream:
            await stream.send_all(b"\0" * 100)
            assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 4")
