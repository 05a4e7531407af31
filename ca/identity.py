"""Who somebody is: a SPIFFE identity of one of four classes that never mix.

    spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT    a workload; the only class accepted on 15008
    spiffe://TRUST-DOMAIN/node/NAME                          an agent, towards the centre
    spiffe://TRUST-DOMAIN/operator/NAME                      a person or a script, towards the centre
    spiffe://TRUST-DOMAIN/central/NAME                       the centre itself

The grammar is that of the SPIFFE-ID specification (section 2), narrowed to lower-case DNS-like names so that one
identity has exactly one spelling and can be compared as text.
"""

import base64
import hashlib
import re
from dataclasses import dataclass, field

_TRUST_DOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]{0,253}[a-z0-9])?")
_NAME = re.compile(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?")


class IdentityError(ValueError):
    """The text is no identity; the message says what is wrong with it."""


def check_name(text: str, what: str) -> str:
    """Return `text` if it may name a `what` (1-63 of a-z 0-9 - . with a letter or digit at both ends)."""
    if not _NAME.fullmatch(text):
        raise IdentityError(
            f"{what} {text!r} is not a name: use 1 to 63 of a-z, 0-9, '-' and '.', with a letter or digit at both ends"
        )
    return text


def check_trust_domain(text: str) -> str:
    """Return `text` if it may be a trust domain."""
    if not _TRUST_DOMAIN.fullmatch(text):
        raise IdentityError(
            f"trust domain {text!r} is not a name: use lower-case letters, digits, '-' and '.', as in shop.example"
        )
    return text


@dataclass(frozen=True, slots=True, order=True)
class WorkloadIdentity:
    """The identity a workload proves in a tunnel."""

    trust_domain: str
    namespace: str
    service_account: str
    _uri: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        check_name(self.namespace, "namespace")
        check_name(self.service_account, "service account")
        uri = f"spiffe://{self.trust_domain}/ns/{self.namespace}/sa/{self.service_account}"
        object.__setattr__(self, "_uri", uri)  # every connection asks for it, and for the hash

    def __str__(self) -> str:
        return self._uri

    def __hash__(self) -> int:
        return hash(self._uri)

    @property
    def sni(self) -> str:
        """The server name by which our client asks for this identity: 52 base32 characters of a SHA-256."""
        digest = hashlib.sha256(str(self).encode()).digest()
        return base64.b32encode(digest).decode().rstrip("=").lower() + ".id.culvert"


@dataclass(frozen=True, slots=True, order=True)
class _Named:
    trust_domain: str
    name: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        check_name(self.name, self._segment())

    def __str__(self) -> str:
        return f"spiffe://{self.trust_domain}/{self._segment()}/{self.name}"

    @classmethod
    def _segment(cls) -> str:
        return cls.__name__.removesuffix("Identity").lower()


class NodeIdentity(_Named):
    """An agent's own identity: it authenticates the agent to the centre, never a workload."""

    __slots__ = ()


class OperatorIdentity(_Named):
    """A person's or a script's identity: it may change what the mesh is."""

    __slots__ = ()


class CentralIdentity(_Named):
    """The centre's own identity: what agents and operators expect to find at its address."""

    __slots__ = ()


Identity = WorkloadIdentity | NodeIdentity | OperatorIdentity | CentralIdentity

_NAMED = {c._segment(): c for c in (NodeIdentity, OperatorIdentity, CentralIdentity)}


def parse(uri: str) -> Identity:
    """Read an identity from its URI; IdentityError says why a text is none."""
    scheme, slashes, rest = uri.partition("://")
    if scheme != "spiffe" or not slashes:
        raise IdentityError(f"{uri!r} is no identity: it must begin with spiffe://")
    match rest.split("/"):
        case [domain, "ns", namespace, "sa", account]:
            return WorkloadIdentity(domain, namespace, account)
        case [domain, segment, name] if segment in _NAMED:
            return _NAMED[segment](domain, name)
    raise IdentityError(
        f"{uri!r} is no identity: after the trust domain it must read /ns/NAMESPACE/sa/SERVICE-ACCOUNT, "
        "/node/NAME, /operator/NAME or /central/NAME"
    )
