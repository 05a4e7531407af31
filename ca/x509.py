"""Keys, signing requests and certificates; clock and lifetimes are arguments.

One shape of leaf, the X.509-SVID of SPIFFE narrowed: P-256, empty subject, one URI SAN (critical, since it stands for
the subject), CA=false, critical KeyUsage digitalSignature, EKU for both sides of TLS. `issue` writes that shape
whatever a request asks for. `identity_of` takes no other identity from a peer; it leaves to a stock peer's CA the key's
algorithm and a subject, which prove nothing.

What OpenSSL checks in the handshake (chain, dates, purpose) is not checked again here.
"""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ca.identity import Identity, IdentityError, check_trust_domain, parse

MAX_CSR = 16 * 2**10
"""Bytes of a signing request in PEM. One of ours has about 400."""

BACKDATED = timedelta(minutes=2)
"""How long before its issue a certificate is valid: clocks of machines differ."""

_E = TypeVar("_E", bound=x509.ExtensionType)
_PURPOSES = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)


class CsrError(Exception):
    """The signing request cannot be granted to anybody; the message says why."""


class CertificateError(Exception):
    """The certificate is not one of ours, or cannot be made; the message says why."""


@dataclass(frozen=True, slots=True)
class CsrFacts:
    """What a signing request asks for, after it proved to hold the key."""

    identity: Identity
    public_key: ec.EllipticCurvePublicKey


@dataclass(frozen=True, slots=True)
class Issuer:
    """A certificate that may sign others, and its key."""

    cert: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)


def new_key() -> ec.EllipticCurvePrivateKey:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The key as PKCS #8 PEM, unencrypted: whoever writes it to a file sees to the mode."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def load_key(pem: bytes) -> ec.EllipticCurvePrivateKey:
    """Read a key written by `key_pem`; CertificateError if it is none."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise CertificateError(f"no readable private key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CertificateError("the private key is not on the curve P-256")
    return key


def make_csr(key: ec.EllipticCurvePrivateKey, identity: Identity) -> bytes:
    """A signing request in PEM for `identity`."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return (
        builder.add_extension(_san(str(identity)), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def read_csr(pem: bytes | str) -> CsrFacts:
    """Judge a signing request from a stranger. Its subject and attributes are ignored, a certificate repeats neither;
    extensions other than the SAN are refused, so that nobody believes to have got what was asked for."""
    raw = pem.encode("utf-8", "replace") if isinstance(pem, str) else pem
    if len(raw) > MAX_CSR:
        raise CsrError(f"the signing request has {len(raw)} bytes; at most {MAX_CSR} are read")
    try:
        csr = x509.load_pem_x509_csr(raw)
        extensions = list(csr.extensions)
        key = csr.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise CsrError("the key of the signing request is not on the curve P-256")
        proven = csr.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion, x509.DuplicateExtension) as error:
        raise CsrError(f"this is no signing request in PEM: {error}") from error
    if not proven:
        raise CsrError("the signing request is not signed with its own key")
    san = None
    for extension in extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            asked = f"{type(extension.value).__name__} ({extension.oid.dotted_string})"
            raise CsrError(f"the signing request asks for {asked}; it may ask for a URI SAN only")
        san = extension.value
    try:
        return CsrFacts(_one_identity(san), key)
    except CertificateError as error:
        raise CsrError(f"the signing request cannot be granted: {error}") from error


def new_root(trust_domain: str, now: datetime, life: timedelta) -> Issuer:
    """A root of a trust domain, signed by itself."""
    check_trust_domain(trust_domain)
    key = new_key()
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _issuer_name("root", trust_domain, ski)
    builder = _signing_builder(key.public_key(), ski, name, now, now + life, trust_domain, path_length=1)
    return Issuer(builder.issuer_name(name).sign(key, hashes.SHA256()), key)


def new_issuing(root: Issuer, now: datetime, life: timedelta) -> Issuer:
    """An issuer below a root, for leaves only."""
    trust_domain = _trust_domain(root.cert)
    key = new_key()
    ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    name = _issuer_name("issuing", trust_domain, ski)
    until = _until(root, now, life)
    builder = _signing_builder(key.public_key(), ski, name, now, until, trust_domain, path_length=0)
    builder = builder.issuer_name(root.cert.subject).add_extension(_aki(root), critical=False)
    return Issuer(builder.sign(root.key, hashes.SHA256()), key)


def issue(
    issuer: Issuer, identity: Identity, public_key: ec.EllipticCurvePublicKey, now: datetime, life: timedelta
) -> x509.Certificate:
    """A leaf for `identity`. It ends with `life` or with the issuer, whichever is first; CertificateError when the
    issuer has ended, or belongs to another trust domain."""
    if identity.trust_domain != _trust_domain(issuer.cert):
        raise CertificateError(f"{identity} is not in the trust domain of the issuer, {_trust_domain(issuer.cert)}")
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(x509.Name([]))
        .issuer_name(issuer.cert.subject)
        .public_key(public_key)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(_until(issuer, now, life))
        .add_extension(_san(str(identity)), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage(_PURPOSES), critical=False)
        .add_extension(_aki(issuer), critical=False)
        .sign(issuer.key, hashes.SHA256())
    )


def identity_of(cert: x509.Certificate) -> Identity:
    """The identity that a peer's certificate proves, if it has exactly the shape of a leaf; else CertificateError."""
    try:
        extensions = cert.extensions
        if cert.version is not x509.Version.v3:
            raise CertificateError("the certificate is not of version 3")
        identity = _one_identity(_find(extensions, x509.SubjectAlternativeName))
        san_critical = extensions.get_extension_for_class(x509.SubjectAlternativeName).critical
        subject_empty = not list(cert.subject)
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension) as error:
        raise CertificateError(f"the certificate cannot be read: {error}") from error
    if subject_empty and not san_critical:
        raise CertificateError("the certificate has neither a subject nor a critical SAN")
    constraints = _find(extensions, x509.BasicConstraints)
    if constraints is not None and constraints.ca:
        raise CertificateError("the certificate is a CA's: it may sign, not speak")
    usage = _find(extensions, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise CertificateError("the certificate lacks the key usage digitalSignature")
    if not extensions.get_extension_for_class(x509.KeyUsage).critical:
        raise CertificateError("the key usage of the certificate is not critical")
    if usage.key_cert_sign or usage.crl_sign:
        raise CertificateError("the certificate's key may sign certificates: such a key may not speak")
    purposes = _find(extensions, x509.ExtendedKeyUsage)
    if purposes is None or not set(_PURPOSES) <= set(purposes):
        raise CertificateError("the certificate lacks the extended key usages clientAuth and serverAuth")
    return identity


def pem(*certs: x509.Certificate) -> bytes:
    """The certificates in PEM, one after another."""
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certs)


def load_chain(data: bytes) -> list[x509.Certificate]:
    """Every certificate in a PEM text, in its order; CertificateError if there is none."""
    try:
        return x509.load_pem_x509_certificates(data)
    except (ValueError, x509.InvalidVersion) as error:
        raise CertificateError(f"no readable certificate in PEM: {error}") from error


def life(cert: x509.Certificate) -> tuple[datetime, datetime]:
    """When a certificate of ours was issued, and when it ends. It is valid a little earlier (BACKDATED)."""
    ends = cert.not_valid_after_utc
    return min(cert.not_valid_before_utc + BACKDATED, ends), ends


def fingerprint(cert: x509.Certificate) -> str:
    """SHA-256 over the DER form, in hex."""
    return cert.fingerprint(hashes.SHA256()).hex()


def serial(cert: x509.Certificate) -> str:
    """Its serial number in lower-case hex, the spelling in which it is recorded and revoked."""
    return f"{cert.serial_number:x}"


def _san(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _one_identity(san: x509.SubjectAlternativeName | None) -> Identity:
    names = list(san or ())
    uris = [n.value for n in names if isinstance(n, x509.UniformResourceIdentifier)]
    if len(uris) != len(names):
        other = next(n for n in names if not isinstance(n, x509.UniformResourceIdentifier))
        raise CertificateError(f"it has a SAN that is no URI: {type(other).__name__}")
    if len(uris) != 1:
        raise CertificateError(f"it has {len(uris) or 'no'} URI SANs; an identity is exactly one")
    try:
        return parse(uris[0])
    except IdentityError as error:
        raise CertificateError(str(error)) from error


def _find(extensions: x509.Extensions, kind: type[_E]) -> _E | None:
    try:
        return extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _usage(*, digital_signature: bool = False, signs: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _issuer_name(role: str, trust_domain: str, ski: x509.SubjectKeyIdentifier) -> x509.Name:
    # The key's id keeps the names of successive issuers apart; RFC 5280 allows 64 characters of an organisation.
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain[:64]),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Culvert {role} {ski.digest.hex()[:8]}"),
        ]
    )


def _signing_builder(
    key: ec.EllipticCurvePublicKey,
    ski: x509.SubjectKeyIdentifier,
    name: x509.Name,
    now: datetime,
    until: datetime,
    trust_domain: str,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .serial_number(x509.random_serial_number())
        .subject_name(name)
        .public_key(key)
        .not_valid_before(now - BACKDATED)
        .not_valid_after(until)
        .add_extension(_san(f"spiffe://{trust_domain}"), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(ski, critical=False)
    )


def _trust_domain(issuer: x509.Certificate) -> str:
    san = issuer.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    (uri,) = san.get_values_for_type(x509.UniformResourceIdentifier)
    return uri.removeprefix("spiffe://")


def _aki(issuer: Issuer) -> x509.AuthorityKeyIdentifier:
    ski = issuer.cert.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)


def _until(issuer: Issuer, now: datetime, life: timedelta) -> datetime:
    end = issuer.cert.not_valid_after_utc
    if now >= end:
        raise CertificateError(f"the issuer ended at {end:%Y-%m-%d %H:%M} UTC and cannot sign any more")
    return min(now + life, end)
