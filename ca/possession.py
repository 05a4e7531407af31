"""Proving to hold a key outside of the TLS handshake: a signature that is good on one connection only.

It covers the signing request that it goes with and the binding of the TLS connection it travels on (RFC 9266), so one
that is seen elsewhere proves nothing: there is no nonce to keep, and nothing to replay.
"""

import base64
import binascii
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

_CONTEXT = b"culvert node recovery 1\x00"
"""Keeps the signature from being taken for one over anything else."""


def prove(key: ec.EllipticCurvePrivateKey, csr: str, binding: bytes) -> str:
    """The proof that goes with `csr` over the connection that has this binding; base64."""
    return base64.b64encode(key.sign(_said(csr, binding), ec.ECDSA(hashes.SHA256()))).decode()


def proves(key: ec.EllipticCurvePublicKey, proof: str, csr: str, binding: bytes) -> bool:
    """Whether the holder of that key made the proof, for this request on this connection."""
    try:
        key.verify(base64.b64decode(proof, validate=True), _said(csr, binding), ec.ECDSA(hashes.SHA256()))
    except (binascii.Error, ValueError, InvalidSignature):
        return False
    return True


def _said(csr: str, binding: bytes) -> bytes:
    return _CONTEXT + hashlib.sha256(csr.encode("utf-8", "replace")).digest() + binding
