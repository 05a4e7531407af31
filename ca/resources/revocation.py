"""Revocation: certificates and identities that nobody in the mesh may accept any more, though they have not ended."""

import hashlib
import re
from datetime import UTC, datetime
from typing import Literal

import msgspec

from ca.identity import CentralIdentity, Identity, NodeIdentity, WorkloadIdentity, parse
from ca.resources.metadata import API_VERSION, Key, Metadata

_SERIAL = re.compile(r"[0-9a-f]{1,40}")


def canonical_serial(text: str) -> str:
    """The one spelling of a certificate's serial number (lower-case hex, no zeros in front), whatever tool it was
    copied from; ValueError if it is none."""
    plain = text.strip().lower().removeprefix("0x").replace(":", "").lstrip("0")
    if not _SERIAL.fullmatch(plain):
        raise ValueError(f"serial {text!r} is no serial number in hex, as culvert certificates -o json shows it")
    return plain


class RevocationSpec(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """What is revoked: everything that proves `identity`, past and future, and the certificates with these `serials`.

    A node is an identity too; then the serials are those of what it was given for its workloads. `time` is when it was
    revoked and `ends` when the last of the serials ends by itself, both as in 2026-11-23T20:00:00Z.
    """

    identity: str = ""
    serials: tuple[str, ...] = ()
    reason: str = ""
    time: str = ""
    ends: str = ""

    def __post_init__(self) -> None:
        if not self.identity and not self.serials:
            raise ValueError("neither identity nor serials: say what is revoked")
        if self.identity and isinstance(parse(self.identity), CentralIdentity):
            raise ValueError(
                "identity: a centre cannot be revoked by its own word; give it another name and certificate"
            )
        for serial in self.serials:
            if canonical_serial(serial) != serial:
                raise ValueError(f"serials: {serial!r} must be written {canonical_serial(serial)}")
        if len(self.reason) > 500:
            raise ValueError("reason: longer than 500 characters")
        for name, value in (("time", self.time), ("ends", self.ends)):
            if value:
                read_time(value, name)


class Revocation(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag_field="kind"):
    """One act of distrust. Deleting it restores what has not ended meanwhile."""

    metadata: Metadata
    spec: RevocationSpec
    api_version: Literal["culvert/v1"] = API_VERSION

    def __post_init__(self) -> None:
        if self.metadata.namespace:
            raise ValueError("metadata.namespace: a revocation holds for the whole mesh; leave it out")

    @property
    def key(self) -> Key:
        return Key("Revocation", "", self.metadata.name)

    @property
    def ended(self) -> datetime | None:
        """When all that is revoked here has ended by itself; None if never, or if nobody said."""
        return read_time(self.spec.ends, "ends") if self.spec.ends and not self.spec.identity else None


def revocation_name(target: Identity | str) -> str:
    """The name under which `culvert ca revoke` keeps what it revokes: the same for the same target."""
    match target:
        case WorkloadIdentity(namespace=namespace, service_account=account):
            plain = f"workload-{namespace}-{account}"
        case str():
            return f"serial-{target}"
        case NodeIdentity(name=name):
            plain = f"node-{name}"
        case _:
            plain = f"{type(target).__name__.removesuffix('Identity').lower()}-{target.name}"
    # a-b/c and a/b-c read alike without it.
    return f"{plain[:52].rstrip('-.')}-{hashlib.sha256(str(target).encode()).hexdigest()[:8]}"


def write_time(when: datetime) -> str:
    """As the spec has it."""
    return f"{when.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def read_time(text: str, what: str) -> datetime:
    """The moment that `what` names; ValueError."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise ValueError(f"{what}: {text!r} is no time; write it as in 2026-11-23T20:00:00Z") from error
    if when.tzinfo is None:
        raise ValueError(f"{what}: {text!r} has no time zone; write it as in 2026-11-23T20:00:00Z")
    return when
