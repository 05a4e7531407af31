"""Keys on disk that only this machine can read: sealed with a secret that the operator gives, as a systemd credential.

systemd decrypts the credential (bound to the machine's TPM, or to its host key) for the running service alone, so that
a copied disk or a backup of the state directory holds no key that anybody could use. Root on the running machine is not
kept out, and cannot be.

A sealed text is a line that says so and base64: AES-256-GCM with a key derived from the secret. The file's name is
authenticated with it, so that one file cannot be put in another's place.
"""

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from agent.node.files import StateError

CREDENTIAL = "culvert-seal"
"""Name of the systemd credential."""
SHORTEST, LONGEST = 16, 2**16
"""Bytes of a secret: less could be guessed, more is no secret but a mistake."""

_HEAD = b"sealed 1 aes-256-gcm\n"
_NONCE = 12


class Seal:
    """Closes and opens texts with one secret."""

    def __init__(self, secret: bytes, source: str) -> None:
        """`source` names the secret in messages. StateError if it cannot be one."""
        if not SHORTEST <= len(secret) <= LONGEST:
            raise StateError(
                f"{source}: a secret of {len(secret)} bytes seals nothing; make one of 32 random bytes: "
                "head -c 32 /dev/urandom"
            )
        self._source = source
        self._cipher = AESGCM(HKDF(SHA256(), 32, None, b"culvert state 1").derive(secret))

    def close(self, name: str, body: bytes) -> bytes:
        """The sealed form of the file `name`."""
        nonce = os.urandom(_NONCE)
        return _HEAD + base64.b64encode(nonce + self._cipher.encrypt(nonce, body, name.encode())) + b"\n"

    def open(self, name: str, sealed: bytes) -> bytes:
        """What `close` was given for the same name. StateError if it was sealed with another secret; ValueError if it
        is none of ours."""
        try:
            data = base64.b64decode(sealed.removeprefix(_HEAD).strip(), validate=True)
        except binascii.Error as error:
            raise ValueError(f"not sealed by us: {error}") from error
        try:
            return self._cipher.decrypt(data[:_NONCE], data[_NONCE:], name.encode())
        except (InvalidTag, ValueError) as error:
            raise StateError(
                f"{name} was sealed with another secret than that of {self._source}; bring the right one back, or join "
                "again: culvert agent join --force TOKEN"
            ) from error


def is_sealed(body: bytes) -> bool:
    """Whether a text is sealed."""
    return body.startswith(_HEAD)


def find(path: str, environ: Mapping[str, str]) -> Seal | None:
    """The seal of the secret in the file `path`, else of the service's credential; None if neither was given. Blocks;
    StateError if there is one that cannot be used."""
    directory = environ.get("CREDENTIALS_DIRECTORY", "")
    file = Path(path) if path else Path(directory, CREDENTIAL)
    if not path and not (directory and file.exists()):
        return None
    try:
        return Seal(file.read_bytes(), f"the secret {file}" if path else f"the credential {CREDENTIAL}")
    except OSError as error:
        raise StateError(f"the secret {file} cannot be read: {error.strerror}; it seals this node's keys") from error
