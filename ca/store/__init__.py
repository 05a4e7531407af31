"""Where the centre's state rests: one small interface, and the records that go through it.

sqlite   the embedded default: one directory, one process
schema   its tables and their migrations
keys     private keys, as files beside the database and never inside it

A store is dumb on purpose. It keeps what it is given, whole or not at all, and knows two rules: revisions have no gap
(`Batch.revision`), and a join token burns once (`Batch.burn`). Both are compare-and-set, so that several centres over
one distributed store cannot undo each other's work.

Calls block, on `commit` for as long as the disk takes: call them in a thread. Any thread will do, several at once too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple, Protocol

from ca.resources.metadata import Key

RECORD_VERSION = 1
"""Version of the records below as they are written now. Each stored record carries the one it was written with."""

CHANGES_KEPT = 10_000
"""How many changes the log holds. A node that missed more is sent everything."""


class StoreError(Exception):
    """The state cannot be read or kept, and the operator must act; the message says what and how. Nothing was
    half-written: a failed commit left the store as it was."""


class ConflictError(Exception):
    """A commit came too late: somebody else took its revision, or burnt its token. Nothing was written."""


@dataclass(frozen=True, slots=True)
class StoredResource:
    """One object as `resources.kinds.encode` wrote it, and the revision that put it there."""

    key: Key
    revision: int
    body: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the change log: what `key` names was put (`deleted` false) or deleted at `revision`. What was put
    stands in the resources; the log does not repeat it."""

    revision: int
    key: Key
    deleted: bool


@dataclass(frozen=True, slots=True)
class StoredToken:
    """A join token: `digest` is the hex SHA-256 of its secret, which is never stored. `expires` and `used` are unix
    time; `used` is None until a node has joined with it."""

    digest: str
    node: str
    expires: float
    used: float | None = None


@dataclass(frozen=True, slots=True)
class StoredCertificate:
    """That a certificate was issued. `serial` is hex, `node` who asked for it (empty for operators and centres),
    `issued` and `not_after` unix time, `issuer` the fingerprint of the certificate that signed it. `of_use` is until
    when it is good for something beyond its end: a node recovers by it, and must not once it is revoked."""

    serial: str
    identity: str
    node: str
    not_after: float
    issuer: str
    issued: float = 0.0
    of_use: float = 0.0


class Holder(NamedTuple):
    """Who was given certificates for `identity`, and of the last of them the unix times of issue and end. There may be
    a hundred thousand, hence no dataclass."""

    identity: str
    node: str
    issued: float
    not_after: float


@dataclass(frozen=True, slots=True)
class StoredIssuer:
    """A certificate that signs, in PEM. `role` is `root` or `issuing`; its key is found in Keys by `fingerprint`.
    Several of each may be there while one takes over from another; `retired` ones are trusted and sign nothing."""

    fingerprint: str
    role: str
    certificate: bytes
    not_after: float
    retired: bool = False


@dataclass(frozen=True, slots=True)
class Contents:
    """What the registry needs at start. `changes` ascend and are complete after `compacted`: whoever has a revision
    >= `compacted` can be told what came since; anybody else needs everything."""

    revision: int
    compacted: int
    resources: Sequence[StoredResource]
    changes: Sequence[Change]


@dataclass(frozen=True, slots=True)
class Batch:
    """What one commit writes: all of it or nothing.

    `revision` is the registry's new one, exactly one above the stored one (else ConflictError); it goes with `put` and
    `delete`, each of which becomes a line of the change log, and is None in a batch without them. Deleting what is not
    there is logged all the same.
    `burn` holds digests of tokens, each of which must be there and unused (else ConflictError); `burnt` is when.
    `void` holds the names of nodes whose unused tokens go.
    `forget_before`: tokens and certificates that were of no use any more before that time go.
    """

    revision: int | None = None
    put: tuple[StoredResource, ...] = ()
    delete: tuple[Key, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    tokens: tuple[StoredToken, ...] = ()
    burn: tuple[str, ...] = ()
    burnt: float = 0.0
    void: tuple[str, ...] = ()
    certificates: tuple[StoredCertificate, ...] = ()
    issuers: tuple[StoredIssuer, ...] = ()
    forget_before: float | None = None

    def __post_init__(self) -> None:
        if (self.revision is None) != (not self.put and not self.delete):
            raise ValueError("a batch has a revision exactly if it puts or deletes resources")
        if any(r.revision != self.revision for r in self.put):
            raise ValueError("a resource's revision must be that of the batch which puts it")

    def also(self, other: "Batch") -> "Batch":
        """This batch and what the registry wants written with it (its revision, resources and meta) in one commit."""
        if other.tokens or other.burn or other.certificates or other.issuers or self.revision is not None:
            raise ValueError("only the registry's part of a batch can ride along")
        return replace(
            self, revision=other.revision, put=other.put, delete=other.delete, meta={**self.meta, **other.meta}
        )


NOTHING = Batch()
"""The batch that writes nothing."""


class Stage(Enum):
    """How far a commit is, for those who watch or break it on purpose.

    BEGUN    nothing is written yet
    WRITTEN  everything is, but a crash now loses it whole
    DURABLE  it is on disk; the caller does not know yet
    """

    BEGUN = "begun"
    WRITTEN = "written"
    DURABLE = "durable"


CommitHook = Callable[[Stage, int], None]
"""Called with the stage and the number of the commit (1 is the first since the store was opened). What it raises before
DURABLE undoes the commit and reaches the caller."""


class Store(Protocol):
    """The whole interface. `meta` holds small facts by name; `incarnation` is among them from the start: random, made
    with the store, the same for its life."""

    def meta(self) -> Mapping[str, str]:
        """The small facts."""

    def contents(self) -> Contents:
        """Every resource and the change log, as of one moment."""

    def tokens(self, node: str | None = None) -> Sequence[StoredToken]:
        """Tokens not yet forgotten, for one node or all."""

    def certificates(
        self, identity: str | None = None, *, node: str | None = None, serial: str | None = None
    ) -> Sequence[StoredCertificate]:
        """Certificates issued and not yet forgotten: all, or those for which each thing given holds; in the order of
        their end."""

    def holders(self) -> Sequence[Holder]:
        """Everybody with a certificate not yet forgotten, in no order."""

    def issuers(self) -> Sequence[StoredIssuer]:
        """All of them, the oldest first."""

    def commit(self, batch: Batch) -> None:
        """Write the batch. When this returns it has reached the disk; when it raises, nothing of it is there (except
        StoreError after a crash of the disk itself). ConflictError or StoreError."""

    def close(self) -> None:
        """Let go of the store. Nothing is pending that could be lost."""


class Keys(Protocol):
    """Private keys by the fingerprint of their certificate. Apart from the Store, so that a copy of the state (a
    backup, a replica) is no copy of the power to sign."""

    def read(self, fingerprint: str) -> bytes:
        """PEM; StoreError if there is none, or others could read it."""

    def write(self, fingerprint: str, pem: bytes) -> None:
        """Keep a key, on disk before this returns."""
