"""Join tokens: what an operator carries from the centre to a new node.

    culvert1.BASE64URL(JSON {"address": ..., "node": ..., "root": ..., "secret": ...})

The secret proves to the centre that the node was invited; the root's fingerprint lets the node make sure that it speaks
to the right centre, before the secret is said. The `1` is the version of this text.
"""

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

import msgspec

from ca.identity import IdentityError, check_name

_PREFIX = "culvert1."
MAX_TOKEN = 4096
"""Characters of a token. One of ours has about 300."""

_ROOT = re.compile(r"[0-9a-f]{64}")


class TokenError(Exception):
    """The text is no join token; the message says what to do about it."""


class _Content(msgspec.Struct, frozen=True):
    address: str
    node: str
    root: str
    secret: str


@dataclass(frozen=True, slots=True)
class JoinToken:
    """`address` is the centre's, as HOST:PORT; `root` the fingerprint of the mesh's root; `secret` 32 bytes. `str`
    gives the text that people carry; the repr hides the secret."""

    address: str
    root: str
    node: str
    secret: bytes = field(repr=False)

    @classmethod
    def new(cls, address: str, root: str, node: str) -> "JoinToken":
        """A token that was never there before."""
        return cls(address, root, node, secrets.token_bytes(32))

    @classmethod
    def parse(cls, text: str) -> "JoinToken":
        """Read a token; TokenError says what is wrong with the text."""
        text = text.strip()
        version, dot, rest = text.partition(".")
        if not dot or not re.fullmatch(r"culvert[0-9]+", version):
            raise TokenError(
                "this is no join token: one begins with culvert1. and is made by culvert central token create"
            )
        if version + dot != _PREFIX:
            raise TokenError(
                f"this token is of version {version.removeprefix('culvert')}, made by a newer centre: upgrade"
            )
        if len(text) > MAX_TOKEN:
            raise TokenError(f"the token has {len(text)} characters; at most {MAX_TOKEN} are read")
        try:
            content = msgspec.json.decode(_unbase64(rest), type=_Content)
            secret = _unbase64(content.secret)
            check_name(content.node, "node")
        except IdentityError as error:
            raise TokenError(f"the token is damaged: {error}") from error
        except (binascii.Error, ValueError) as error:
            raise TokenError("the token is damaged, perhaps cut off in copying: copy all of it") from error
        if len(secret) != 32 or not _ROOT.fullmatch(content.root) or ":" not in content.address:
            raise TokenError("the token is damaged: its parts do not have their form; have a new one made")
        return cls(content.address, content.root, content.node, secret)

    def __str__(self) -> str:
        content = _Content(self.address, self.node, self.root, _base64(self.secret))
        return _PREFIX + _base64(msgspec.json.encode(content))

    @property
    def digest(self) -> str:
        """The hex SHA-256 of the secret: what the store keeps. A slow hash would add nothing to 256 random bits."""
        return hashlib.sha256(self.secret).hexdigest()

    def proves(self, digest: str) -> bool:
        """Whether the stored digest is that of this secret, in a time that tells nothing."""
        return hmac.compare_digest(self.digest, digest)


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    return base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
