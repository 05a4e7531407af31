"""An operator's credential: one file, 0600, with all that is needed to call the centre."""

import contextlib
import os
import secrets
from datetime import datetime
from pathlib import Path

import msgspec

from ca import endpoint, x509

WARN_BEFORE = 7 * 86400
"""Seconds before its end from which on a credential's user is warned."""


class CredentialError(Exception):
    """The credential cannot be used; the message says why and how to get another."""


class Credential(msgspec.Struct, frozen=True):
    """`address` is the centre's HOST:PORT; the rest is PEM but `trust_domain`, `name` and the record's `version`."""

    address: str
    trust_domain: str
    name: str
    chain: str
    key: str
    roots: str
    version: int = 1

    def __repr__(self) -> str:
        return f"Credential({self.name!r} at {self.address!r})"

    @property
    def ends(self) -> datetime:
        """When its certificate does."""
        return x509.load_chain(self.chain.encode())[0].not_valid_after_utc


def load(path: Path) -> Credential:
    """Read the file; CredentialError."""
    try:
        data = path.read_bytes()
        credential = msgspec.json.decode(data, type=Credential)
        endpoint.split(credential.address)
        x509.load_key(credential.key.encode())
        x509.load_chain(credential.chain.encode())
    except OSError as e:
        raise CredentialError(f"{path}: cannot be read: {e.strerror}") from e
    except (ValueError, msgspec.MsgspecError, x509.CertificateError) as e:
        raise CredentialError(f"{path}: is no operator's credential: {e}") from e
    if path.stat().st_mode & 0o077:
        raise CredentialError(f"{path}: others can read it; once you know that none did, chmod 600 {path}")
    return credential


def save(path: Path, credential: Credential) -> None:
    """Write it, 0600 from the first byte, whole or not at all. OSError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
            f.write(msgspec.json.format(msgspec.json.encode(credential)) + b"\n")
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
