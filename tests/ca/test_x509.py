"""Certificates: what is issued is accepted, and nothing that deviates from it is."""

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509 as cx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from ca import x509
from ca.identity import CentralIdentity, Identity, NodeIdentity, OperatorIdentity, WorkloadIdentity

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
DAY = timedelta(days=1)
WEB = WorkloadIdentity("shop.example", "shop", "web")
KEY = x509.new_key()

ROOT = x509.new_root("shop.example", NOW, 3650 * DAY)
ISSUING = x509.new_issuing(ROOT, NOW, 365 * DAY)


@pytest.mark.parametrize(
    "identity",
    [
        WEB,
        NodeIdentity("shop.example", "web-1"),
        OperatorIdentity("shop.example", "admin"),
        CentralIdentity("shop.example", "central"),
    ],
)
def test_what_is_issued_is_accepted(identity: Identity) -> None:
    facts = x509.read_csr(x509.make_csr(KEY, identity))
    assert facts.identity == identity
    leaf = x509.issue(ISSUING, facts.identity, facts.public_key, NOW, DAY)
    (again,) = x509.load_chain(x509.pem(leaf))
    assert x509.identity_of(again) == identity
    assert again.public_key() == KEY.public_key()
    assert again.not_valid_before_utc == NOW - timedelta(minutes=2)
    assert again.not_valid_after_utc == NOW + DAY
    assert list(again.subject) == []
    assert again.extensions.get_extension_for_class(cx.SubjectAlternativeName).critical


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the command openssl: apt-get install openssl")
def test_openssl_accepts_the_chain(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    root = x509.new_root("shop.example", now, 10 * DAY)
    issuing = x509.new_issuing(root, now, 5 * DAY)
    leaf = x509.issue(issuing, WEB, KEY.public_key(), now, DAY)
    for name, cert in (("root", root.cert), ("issuing", issuing.cert), ("leaf", leaf)):
        (tmp_path / name).write_bytes(x509.pem(cert))
    for purpose in ("sslclient", "sslserver"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose]
        command += ["-CAfile", "root", "-untrusted", "issuing", "leaf"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
    # The issuing certificate's path length is 0: a CA below it is worth nothing.
    below = x509.new_issuing(issuing, now, DAY)
    stray = x509.issue(below, WEB, KEY.public_key(), now, DAY)
    (tmp_path / "below").write_bytes(x509.pem(issuing.cert, below.cert))
    (tmp_path / "stray").write_bytes(x509.pem(stray))
    command = ["openssl", "verify", "-CAfile", "root", "-untrusted", "below", "stray"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "path length" in result.stderr


def test_nothing_outlives_its_issuer() -> None:
    issuing = x509.new_issuing(ROOT, NOW, 10_000 * DAY)
    assert issuing.cert.not_valid_after_utc == ROOT.cert.not_valid_after_utc
    assert x509.issue(ISSUING, WEB, KEY.public_key(), NOW, 400 * DAY).not_valid_after_utc == NOW + 365 * DAY
    with pytest.raises(x509.CertificateError, match="issuer ended at 2031-05-01 12:00 UTC"):
        x509.issue(ISSUING, WEB, KEY.public_key(), NOW + 365 * DAY, DAY)


def test_an_issuer_keeps_to_its_trust_domain() -> None:
    with pytest.raises(x509.CertificateError, match=r"not in the trust domain of the issuer, shop\.example"):
        x509.issue(ISSUING, WorkloadIdentity("other.example", "shop", "web"), KEY.public_key(), NOW, DAY)


def test_successive_issuers_have_names_of_their_own() -> None:
    assert x509.new_root("shop.example", NOW, DAY).cert.subject != ROOT.cert.subject
    assert "key=" not in repr(ROOT)


def test_keys_make_the_round_trip() -> None:
    assert x509.load_key(x509.key_pem(KEY)).public_key() == KEY.public_key()


def _private(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("pem", "what"),
    [
        (b"", "no readable private key"),
        (x509.pem(ROOT.cert), "no readable private key"),
        (_private(ec.generate_private_key(ec.SECP384R1())), "not on the curve P-256"),
        (_private(rsa.generate_private_key(65537, 2048)), "not on the curve P-256"),
    ],
)
def test_other_keys_are_refused(pem: bytes, what: str) -> None:
    with pytest.raises(x509.CertificateError, match=what):
        x509.load_key(pem)


def _csr(*names: cx.GeneralName, key: object = KEY, extra: cx.ExtensionType | None = None) -> bytes:
    builder = cx.CertificateSigningRequestBuilder().subject_name(cx.Name([]))
    if names:
        builder = builder.add_extension(cx.SubjectAlternativeName(names), critical=True)
    if extra is not None:
        builder = builder.add_extension(extra, critical=False)
    assert isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)


def _uri(text: str = str(WEB)) -> cx.UniformResourceIdentifier:
    return cx.UniformResourceIdentifier(text)


def _forged() -> bytes:
    """One bit of the signature is wrong."""
    der = bytearray(cx.load_pem_x509_csr(x509.make_csr(KEY, WEB)).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    return cx.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


@pytest.mark.parametrize(
    ("csr", "what"),
    [
        (_csr(), "no URI SANs"),
        (_csr(_uri(), _uri("spiffe://shop.example/ns/shop/sa/db")), "2 URI SANs"),
        (_csr(_uri(), cx.DNSName("web.shop")), "no URI: DNSName"),
        (_csr(cx.RFC822Name("web@shop.example")), "no URI: RFC822Name"),
        (_csr(_uri("https://shop.example/ns/shop/sa/web")), "must begin with spiffe://"),
        (_csr(_uri("spiffe://shop.example/ns/shop/sa/web/")), "it must read /ns/"),
        (_csr(_uri("spiffe://shop.example/ns/shop/sa/WEB")), "'WEB' is not a name"),
        (_csr(_uri("spiffe://shop.example/ns/shop/sa/web?x")), "is not a name"),
        (_csr(_uri(), extra=cx.BasicConstraints(ca=True, path_length=None)), "asks for BasicConstraints"),
        (_csr(_uri(), extra=cx.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])), "asks for ExtendedKeyUsage"),
        (_csr(_uri(), extra=cx.UnrecognizedExtension(cx.ObjectIdentifier("1.2.3.4"), b"")), r"\(1\.2\.3\.4\)"),
        (_csr(_uri(), key=ec.generate_private_key(ec.SECP384R1())), "P-256"),
        (_csr(_uri(), key=ec.generate_private_key(ec.SECP256K1())), "P-256"),
        (_csr(_uri(), key=rsa.generate_private_key(65537, 2048)), "P-256"),
        (_csr(_uri(), key=ed25519.Ed25519PrivateKey.generate()), "P-256"),
        (_forged(), "not signed with its own key"),
        (x509.make_csr(KEY, WEB) + b" " * x509.MAX_CSR, "at most 16384"),
        (x509.make_csr(KEY, WEB)[:-60], "no signing request"),
        (x509.pem(ROOT.cert), "no signing request"),
        (b"", "no signing request"),
        ("\ud800", "no signing request"),
    ],
)
def test_requests_that_nobody_may_make(csr: bytes | str, what: str) -> None:
    with pytest.raises(x509.CsrError, match=what):
        x509.read_csr(csr)


@given(st.integers(0, 600), st.integers(0, 255))
def test_a_spoilt_request_never_passes_as_another(at: int, byte: int) -> None:
    csr = bytearray(x509.make_csr(KEY, WEB))
    csr[at % len(csr)] = byte
    with contextlib.suppress(x509.CsrError):
        assert x509.read_csr(bytes(csr)).identity == WEB


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_request(data: bytes) -> None:
    with pytest.raises(x509.CsrError):
        x509.read_csr(data)


Change = Callable[[dict[type[cx.ExtensionType], tuple[cx.ExtensionType, bool]]], None]


def _leaf(change: Change, subject: str = "") -> cx.Certificate:
    """A certificate of our issuer that deviates from the shape by `change`."""
    good = x509.issue(ISSUING, WEB, KEY.public_key(), NOW, DAY)
    extensions = {type(e.value): (e.value, e.critical) for e in good.extensions}
    change(extensions)
    name = cx.Name([cx.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else [])
    builder = cx.CertificateBuilder(ISSUING.cert.subject, name, KEY.public_key(), good.serial_number)
    builder = builder.not_valid_before(NOW).not_valid_after(NOW + DAY)
    for value, critical in extensions.values():
        builder = builder.add_extension(value, critical=critical)
    return builder.sign(ISSUING.key, hashes.SHA256())


def _put(value: cx.ExtensionType, critical: bool = True) -> Change:
    return lambda extensions: extensions.update({type(value): (value, critical)})


def _drop(kind: type[cx.ExtensionType]) -> Change:
    return lambda extensions: extensions.pop(kind) and None


def _usage(**on: bool) -> cx.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    names += ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return cx.KeyUsage(**{n: on.get(n, False) for n in names})


def _sans(*names: cx.GeneralName) -> cx.SubjectAlternativeName:
    return cx.SubjectAlternativeName(names)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (_drop(cx.SubjectAlternativeName), "no URI SANs"),
        (_put(_sans(_uri(), _uri("spiffe://shop.example/ns/a/sa/b"))), "2 URI SANs"),
        (_put(_sans(_uri(), cx.DNSName("web"))), "no URI: DNSName"),
        (_put(_sans(_uri("spiffe://shop.example/foo"))), "it must read /ns/"),
        (_put(_sans(_uri()), critical=False), "neither a subject nor a critical SAN"),
        (_put(cx.BasicConstraints(ca=True, path_length=None)), "is a CA's"),
        (_drop(cx.KeyUsage), "lacks the key usage"),
        (_put(_usage(key_encipherment=True)), "lacks the key usage"),
        (_put(_usage(digital_signature=True), critical=False), "not critical"),
        (_put(_usage(digital_signature=True, key_cert_sign=True)), "may sign certificates"),
        (_put(_usage(digital_signature=True, crl_sign=True)), "may sign certificates"),
        (_drop(cx.ExtendedKeyUsage), "lacks the extended key usages"),
        (_put(cx.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])), "lacks the extended key usages"),
        (_put(cx.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])), "lacks the extended key usages"),
    ],
)
def test_a_deviating_certificate_proves_nothing(change: Change, what: str) -> None:
    with pytest.raises(x509.CertificateError, match=what):
        x509.identity_of(_leaf(change))


def test_a_certificate_of_a_stock_peer_is_accepted() -> None:
    """Istio's CA sets keyEncipherment too; others a subject, and then the SAN need not be critical."""
    assert x509.identity_of(_leaf(_put(_usage(digital_signature=True, key_encipherment=True)))) == WEB
    assert x509.identity_of(_leaf(_put(_sans(_uri()), critical=False), subject="web")) == WEB
    assert x509.identity_of(_leaf(_drop(cx.BasicConstraints))) == WEB


def test_issuers_are_no_peers() -> None:
    for issuer in (ROOT, ISSUING):
        with pytest.raises(x509.CertificateError):
            x509.identity_of(issuer.cert)


def test_chains() -> None:
    chain = x509.load_chain(x509.pem(ISSUING.cert, ROOT.cert))
    assert [x509.fingerprint(c) for c in chain] == [x509.fingerprint(ISSUING.cert), x509.fingerprint(ROOT.cert)]
    assert len(x509.fingerprint(ROOT.cert)) == 64
    for garbage in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(x509.CertificateError, match="no readable certificate"):
            x509.load_chain(garbage)
