"""Callers whose certificate our own root signed, and that must not speak all the same: each thing wrong by itself."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509 as c
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from agent.snapshot import Snapshot
from ca import x509
from ca.resources.metadata import Metadata
from ca.resources.revocation import Revocation, RevocationSpec
from tests.agent.relay.rig import DB, WEB, authority, leaf, soon
from tests.agent.tunnel.node import hosts
from tests.agent.tunnel.test_arrivals import come, hung_up, speak, until_refused
from tests.agent.views import mesh

Papers = tuple[bytes, bytes]
BOTH = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


def made(
    *,
    names: tuple[c.GeneralName, ...] = (c.UniformResourceIdentifier(str(WEB)),),
    begins: float = -120,
    lasts: float = 3600,
    purposes: tuple[c.ObjectIdentifier, ...] = BOTH,
    ca: bool = False,
    usage: bool = True,
    signs: bool = False,
    critical: bool = True,
) -> Papers:
    """(chain, key) of a leaf by our root; without arguments one that is as it should be."""
    key, now = x509.new_key(), datetime.now(UTC)
    builder = (
        c.CertificateBuilder()
        .serial_number(c.random_serial_number())
        .subject_name(c.Name([]))
        .issuer_name(authority().cert.subject)
        .public_key(key.public_key())
        .not_valid_before(now + timedelta(seconds=begins))
        .not_valid_after(now + timedelta(seconds=begins + lasts))
        .add_extension(c.BasicConstraints(ca=ca, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(c.SubjectAlternativeName(names), critical=critical)
    if usage:
        bits = {"key_cert_sign": signs, "crl_sign": signs, "digital_signature": True}
        others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
        never = {"encipher_only": False, "decipher_only": False}
        builder = builder.add_extension(c.KeyUsage(**bits, **dict.fromkeys(others, False), **never), critical=True)
    if purposes:
        builder = builder.add_extension(c.ExtendedKeyUsage(purposes), critical=False)
    return x509.pem(builder.sign(authority().key, hashes.SHA256())), x509.key_pem(key)


def by_a_workload() -> Papers:
    """Somebody uses his own certificate as if he were an authority."""
    chain, key = leaf(WEB)
    issuer = x509.load_chain(chain)[0]
    child = x509.new_key()
    forged = (
        c.CertificateBuilder()
        .serial_number(c.random_serial_number())
        .subject_name(c.Name([]))
        .issuer_name(issuer.subject)
        .public_key(child.public_key())
        .not_valid_before(datetime.now(UTC) - timedelta(minutes=1))
        .not_valid_after(datetime.now(UTC) + timedelta(minutes=30))
        .add_extension(c.SubjectAlternativeName([c.UniformResourceIdentifier(str(DB))]), critical=True)
        .add_extension(c.ExtendedKeyUsage(BOTH), critical=False)
        .sign(x509.load_key(key), hashes.SHA256())
    )
    return x509.pem(forged, issuer), x509.key_pem(child)


WRONG: dict[str, tuple[Callable[[], Papers], str]] = {
    "not yet valid": (lambda: made(begins=3600), "is not valid before"),
    "expired": (lambda: made(begins=-7200), "ended at"),
    "no purpose": (lambda: made(purposes=()), "lacks the extended key usages"),
    "for clients only": (lambda: made(purposes=BOTH[:1]), "lacks the extended key usages"),
    "for servers only": (lambda: made(purposes=BOTH[1:]), "is not made for this side of TLS"),
    "for mail": (lambda: made(purposes=(ExtendedKeyUsageOID.EMAIL_PROTECTION,)), "is not made for this side of TLS"),
    "an authority's": (lambda: made(ca=True), "is a CA's"),
    "may sign": (lambda: made(signs=True), "may sign certificates"),
    "no key usage": (lambda: made(usage=False), "lacks the key usage digitalSignature"),
    "two identities": (
        lambda: made(names=(c.UniformResourceIdentifier(str(WEB)), c.UniformResourceIdentifier(str(DB)))),
        "2 URI SANs",
    ),
    "a host name besides": (
        lambda: made(names=(c.UniformResourceIdentifier(str(WEB)), c.DNSName("web.shop"))),
        "a SAN that is no URI",
    ),
    "no identity": (lambda: made(names=(c.DNSName("web.shop"),)), "a SAN that is no URI"),
    "no names": (lambda: made(names=()), "no URI SAN"),
    "a name that can be ignored": (lambda: made(critical=False), "neither a subject nor a critical SAN"),
    "of the centre": (
        lambda: made(names=(c.UniformResourceIdentifier("spiffe://shop.example/central/c1"),)),
        "only workloads speak here",
    ),
    "of no class": (
        lambda: made(names=(c.UniformResourceIdentifier("spiffe://shop.example/ns/shop"),)),
        "spiffe://shop.example/ns/shop",
    ),
    "signed by a workload": (by_a_workload, "TLS:"),
}


async def test_the_right_papers():
    """The control: what follows differs from these in one thing each."""
    async with hosts() as (_, db):
        sock = await come(db)
        await speak(sock, WEB, credentials=made())
        await soon(lambda: len(db.links) == 1)
        assert db.refusals == []
        sock.close()


@pytest.mark.parametrize("what", WRONG)
async def test_wrong_papers_are_refused_with_the_reason(what):
    papers, expected = WRONG[what]
    async with hosts() as (_, db):
        sock = await come(db)
        await speak(sock, WEB, credentials=papers())
        (reason,) = await until_refused(db)
        assert expected in reason
        await hung_up(sock)
        assert (db.links, db.asked) == ([], [])


@pytest.mark.parametrize("of", ["the caller", "the called", "the certificate"])
async def test_what_is_revoked_opens_no_tunnel(of):
    papers = made()
    serial = x509.serial(x509.load_chain(papers[0])[0])
    spec = {
        "the caller": RevocationSpec(identity=str(WEB), reason="lost"),
        "the called": RevocationSpec(identity=str(DB), reason="lost"),
        "the certificate": RevocationSpec(serials=(serial,), reason="lost"),
    }[of]
    view = Snapshot("n1").apply(1, [mesh(), Revocation(Metadata("r"), spec)], ())
    async with hosts() as (_, db):
        db.credentials._view = lambda: view
        sock = await come(db)
        await speak(sock, WEB, credentials=papers)
        (reason,) = await until_refused(db)
        assert reason.endswith("is revoked (lost)")
        await hung_up(sock)
        assert (db.links, db.asked) == ([], [])


async def test_our_client_takes_no_wrong_papers_from_a_server():
    """The same shape is asked of those we dial."""
    async with hosts() as (web, db):
        port = db.listen()
        for what in ("no purpose", "for clients only", "an authority's", "expired", "two identities"):
            papers, _ = WRONG[what]
            chain, key = papers()
            db.credentials._leaves[DB] = chain, key
            db.credentials._build(DB, (chain, key))
            wanted = web.want(port)
            await web.news.until(lambda wanted=wanted: bool(wanted.why))
            assert wanted.link is None
        assert web.links == []
