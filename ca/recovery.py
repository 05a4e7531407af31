"""A node whose certificate has ended proves itself once more, with that certificate's key. Pure; the clock is given.

The proof (see possession) is good for this one call. TLS itself goes on refusing ended certificates: had the handshake
let them in, every other call would have to remember to turn them away.

Who may recover is narrower than who may renew. The certificate must be one that this mesh's own issuers signed, and not
have ended longer ago than the window. The caller sees to the rest: neither the node nor the serial is revoked, the node
was not deleted, it has not joined anew since (an old disk is no second node), and nobody is connected under its name.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import Certificate

from ca import possession, x509
from ca.authority import Refused
from ca.contract import RecoverRequest
from ca.duration import Duration
from ca.identity import NodeIdentity

MAX_CERTIFICATE = 16 * 2**10
"""Characters of a certificate in PEM, with its chain. One of ours has about 2,000."""


@dataclass(frozen=True, slots=True)
class Proven:
    """Who proved to be it, and by which certificate. `issued` is when that was signed."""

    node: NodeIdentity
    serial: str
    issued: datetime


def check(
    request: RecoverRequest, binding: bytes, issuers: Iterable[Certificate], now: datetime, window: timedelta
) -> Proven:
    """Who asks; Refused with the reason and the next step if that is not proven, or comes too late."""
    if len(request.certificate) > MAX_CERTIFICATE:
        raise Refused(f"the certificate has {len(request.certificate)} characters; at most {MAX_CERTIFICATE} are read")
    try:
        certificate = x509.load_chain(request.certificate.encode("utf-8", "replace"))[0]
        identity = x509.identity_of(certificate)
    except x509.CertificateError as error:
        raise Refused(f"this proves no node: {error}") from error
    key = certificate.public_key()
    if not isinstance(identity, NodeIdentity) or not isinstance(key, ec.EllipticCurvePublicKey):
        raise Refused(f"{identity} is no node: only nodes recover")
    if not any(_signed(certificate, issuer) for issuer in issuers):
        raise Refused(f"the certificate of {identity} was not issued here: is it of another mesh? {again(identity)}")
    if not possession.proves(key, request.proof, request.csr, binding):
        raise Refused(
            f"whoever asks as {identity} does not prove, on this connection, to hold the key of its certificate"
        )
    end = certificate.not_valid_after_utc
    if now > end + window:
        raise Refused(
            f"the certificate of node {identity.name} ended at {end:%Y-%m-%d %H:%M} UTC, and a node comes back by "
            f"itself within {Duration(window.total_seconds())} (lives.recovery): {again(identity)}"
        )
    return Proven(identity, x509.serial(certificate), certificate.not_valid_before_utc + x509.BACKDATED)


def again(node: NodeIdentity) -> str:
    """What a person does for a node that cannot come back by itself."""
    return (
        f"have a token made (culvert central token create --node {node.name}), then on the node: "
        "culvert agent join --force TOKEN, and restart its agent"
    )


def _signed(certificate: Certificate, issuer: Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
