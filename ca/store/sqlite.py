"""The embedded store: one directory, one process, SQLite with a write-ahead log.

    DIR/culvert.db (and -wal, -shm)   everything but the keys
    DIR/keys/                         private keys (KeyDirectory)
    DIR/lock                          held by the one process that has the store open

`synchronous=FULL` makes every commit wait for its fsync. Should an fsync ever fail, nobody can say what is on disk, and
trying again may wrongly succeed: the store then refuses all further commits until it is opened afresh.
"""

import contextlib
import fcntl
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ca.resources.metadata import Key
from ca.store import (
    CHANGES_KEPT,
    RECORD_VERSION,
    Batch,
    Change,
    CommitHook,
    ConflictError,
    Contents,
    Holder,
    Stage,
    StoredCertificate,
    StoredIssuer,
    StoredResource,
    StoredToken,
    StoreError,
)
from ca.store.keys import KeyDirectory, sync_directory
from ca.store.schema import migrate


class SqliteStore:
    """A Store in `directory`; `keys` belong to it. Whoever opened it closes it (also as a context manager)."""

    def __init__(self, directory: Path, db: sqlite3.Connection, lock: int, hook: CommitHook | None, kept: int) -> None:
        self.directory = directory
        self.keys = KeyDirectory(directory / "keys")
        self._db = db
        self._lock_file = lock
        self._hook = hook
        self._kept = kept
        self._number = 0
        self._broken = ""
        self._mutex = threading.Lock()

    @classmethod
    def open(
        cls, directory: Path, *, create: bool = False, hook: CommitHook | None = None, kept: int = CHANGES_KEPT
    ) -> "SqliteStore":
        """Open the store; with `create` an empty one is made if there is none. StoreError says what is in the way: also
        another process that has it open, or a newer version's schema. `kept` bounds the change log."""
        path = directory / "culvert.db"
        try:
            if create:
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            elif not path.exists():
                raise StoreError(f"{directory} holds no mesh: make one with culvert central init --dir {directory}")
            lock = _lock(directory)
        except OSError as error:
            raise StoreError(f"{directory} cannot be used: {error.strerror}") from error
        try:
            if create and not path.exists():
                _touch(path)
            with _translated(path):
                db = _connect(path)
                try:
                    migrate(db)
                    db.execute(
                        "INSERT OR IGNORE INTO meta VALUES ('incarnation', ?, ?)",
                        (secrets.token_hex(8), RECORD_VERSION),
                    )
                except BaseException:
                    db.close()
                    raise
        except BaseException:
            os.close(lock)
            raise
        return cls(directory, db, lock, hook, kept)

    def close(self) -> None:
        """Let go of the directory. Twice is once."""
        with self._mutex:
            if self._lock_file >= 0:
                self._db.close()
                os.close(self._lock_file)
                self._lock_file = -1

    def __enter__(self) -> "SqliteStore":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def meta(self) -> Mapping[str, str]:
        """The small facts."""
        return dict(self._rows("SELECT name, value, version FROM meta"))

    def contents(self) -> Contents:
        """Every resource and the change log."""
        with self._mutex, self._translated():
            # One connection and the mutex: nobody writes between these reads.
            ((revision, compacted),) = self._db.execute("SELECT revision, compacted FROM progress")
            resources = _checked(
                self._db.execute("SELECT kind, namespace, name, revision, body, version FROM resources")
            )
            changes = _checked(
                self._db.execute("SELECT kind, namespace, name, revision, deleted, version FROM changes ORDER BY seq")
            )
            return Contents(
                revision,
                compacted,
                [StoredResource(Key(*r[:3]), *r[3:]) for r in resources],
                [Change(r[3], Key(*r[:3]), bool(r[4])) for r in changes],
            )

    def tokens(self, node: str | None = None) -> Sequence[StoredToken]:
        """Tokens not yet forgotten, for one node or all."""
        select = "SELECT digest, node, expires, used, version FROM tokens WHERE ?1 IS NULL OR node = ?1"
        return [StoredToken(*r) for r in self._rows(select, node)]

    def certificates(
        self, identity: str | None = None, *, node: str | None = None, serial: str | None = None
    ) -> Sequence[StoredCertificate]:
        """Certificates issued and not yet forgotten, in the order of their end."""
        given = {k: v for k, v in (("identity", identity), ("node", node), ("serial", serial)) if v is not None}
        where = f"WHERE {' AND '.join(f'{name} = ?' for name in given)}" if given else ""
        columns = "serial, identity, node, not_after, issuer, issued, of_use, version"
        select = f"SELECT {columns} FROM certificates {where} ORDER BY not_after"
        return [StoredCertificate(*r) for r in self._rows(select, *given.values())]

    def holders(self) -> Sequence[Holder]:
        """Everybody with a certificate not yet forgotten."""
        # From the index alone, which has no version: whoever looks at the records themselves is told of a newer one.
        # SQLite takes `not_after` from the very row that has the maximum.
        select = "SELECT identity, node, max(issued), not_after, 0 FROM certificates GROUP BY identity, node"
        return [Holder(*r) for r in self._rows(select)]

    def issuers(self) -> Sequence[StoredIssuer]:
        """All of them, the oldest first."""
        select = "SELECT fingerprint, role, certificate, not_after, retired, version FROM issuers ORDER BY seq"
        return [StoredIssuer(r[0], r[1], r[2], r[3], bool(r[4])) for r in self._rows(select)]

    def commit(self, batch: Batch) -> None:
        """Write the batch, all of it or nothing; it is on disk when this returns."""
        with self._mutex:
            if self._broken:
                raise StoreError(self._broken)
            self._number += 1
            with self._translated():
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    self._tell(Stage.BEGUN)
                    self._write(batch)
                    self._tell(Stage.WRITTEN)
                    self._db.execute("COMMIT")
                except BaseException as error:
                    self._undo(error)
                    raise
            self._tell(Stage.DURABLE)

    def _write(self, batch: Batch) -> None:
        run, many = self._db.execute, self._db.executemany
        if batch.revision is not None:
            self._advance(batch.revision)
        for key in batch.delete:
            run("DELETE FROM resources WHERE kind = ? AND namespace = ? AND name = ?", key)
        many(
            "INSERT OR REPLACE INTO resources VALUES (?, ?, ?, ?, ?, ?)",
            [(*r.key, r.revision, r.body, RECORD_VERSION) for r in batch.put],
        )
        log = [(batch.revision, *k, 1, RECORD_VERSION) for k in batch.delete]
        log += [(batch.revision, *r.key, 0, RECORD_VERSION) for r in batch.put]
        many("INSERT INTO changes (revision, kind, namespace, name, deleted, version) VALUES (?, ?, ?, ?, ?, ?)", log)
        if log:
            self._compact()
        many("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", [(*m, RECORD_VERSION) for m in batch.meta.items()])
        if batch.forget_before is not None:
            run("DELETE FROM tokens WHERE expires < ?", (batch.forget_before,))
            run("DELETE FROM certificates WHERE max(not_after, of_use) < ?", (batch.forget_before,))
        many("DELETE FROM tokens WHERE node = ? AND used IS NULL", [(node,) for node in batch.void])
        for digest in batch.burn:
            burnt = run("UPDATE tokens SET used = ? WHERE digest = ? AND used IS NULL", (batch.burnt, digest))
            if burnt.rowcount != 1:
                raise ConflictError("the token was used, or forgotten, a moment ago")
        many(
            "INSERT INTO tokens VALUES (?, ?, ?, ?, ?)",
            [(t.digest, t.node, t.expires, t.used, RECORD_VERSION) for t in batch.tokens],
        )
        many(
            "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (c.serial, c.identity, c.node, c.not_after, c.issuer, RECORD_VERSION, c.issued, c.of_use)
                for c in batch.certificates
            ],
        )
        many(
            "INSERT INTO issuers (fingerprint, role, certificate, not_after, retired, version)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (fingerprint) DO UPDATE SET retired = excluded.retired",
            [(i.fingerprint, i.role, i.certificate, i.not_after, i.retired, RECORD_VERSION) for i in batch.issuers],
        )

    def _advance(self, revision: int) -> None:
        moved = self._db.execute("UPDATE progress SET revision = ?1 WHERE revision = ?1 - 1", (revision,))
        if moved.rowcount != 1:
            ((stored,),) = self._db.execute("SELECT revision FROM progress")
            raise ConflictError(f"revision {revision} does not follow the stored one, {stored}")

    def _compact(self) -> None:
        """Drop what the log holds beyond its bound. A revision goes whole: half of one would look like all of it."""
        (oldest,) = self._db.execute("SELECT max(seq) - ? FROM changes", (self._kept,)).fetchone()
        last = self._db.execute("SELECT revision FROM changes WHERE seq <= ? ORDER BY seq DESC LIMIT 1", (oldest,))
        for (revision,) in last.fetchall():
            self._db.execute("DELETE FROM changes WHERE revision <= ?", (revision,))
            self._db.execute("UPDATE progress SET compacted = ?", (revision,))

    def _undo(self, error: BaseException) -> None:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_IOERR:
            self._broken = f"the store in {self.directory} failed to write earlier ({error}): see to the disk, restart"
        if self._db.in_transaction:  # SQLite rolls back by itself for some errors
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")

    def _tell(self, stage: Stage) -> None:
        if self._hook:
            self._hook(stage, self._number)

    def _rows(self, select: str, *values: object) -> list[tuple[Any, ...]]:
        with self._mutex, self._translated():
            return _checked(self._db.execute(select, values))

    def _translated(self) -> contextlib.AbstractContextManager[None]:
        return _translated(self.directory / "culvert.db")


def _checked(cursor: sqlite3.Cursor) -> list[tuple[Any, ...]]:
    """The rows without their last column, the record's version, which must be one that we can read."""
    rows = cursor.fetchall()
    newest = max((r[-1] for r in rows), default=0)
    if newest > RECORD_VERSION:
        raise StoreError(
            f"the store holds a record of version {newest}, this version of culvert reads up to {RECORD_VERSION}: "
            "run the newer version that wrote it"
        )
    return [r[:-1] for r in rows]


def _connect(path: Path) -> sqlite3.Connection:
    # A thread of its own may make each call; the store's mutex keeps them apart.
    db = sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None, check_same_thread=False, timeout=5)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
    except BaseException:
        db.close()
        raise
    return db


def _touch(path: Path) -> None:
    """Make the empty database, for the owner only; SQLite gives its log files the same mode."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        sync_directory(path.parent)
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}") from error


def _lock(directory: Path) -> int:
    """Take the directory for this process, until the returned descriptor is closed, by whatever end it comes to."""
    handle = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(handle, 20, 0).decode("ascii", "replace").strip()
        os.close(handle)
        raise StoreError(
            f"{directory} is in use by process {holder or 'unknown'}: only one may have it open; stop that one first"
        ) from error
    with contextlib.suppress(OSError):  # only so that the message above can name us
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
    return handle


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        match getattr(error, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_FULL:
                said = "the disk is full, nothing was changed: make room and try again"
            case sqlite3.SQLITE_IOERR:
                said = f"the disk failed ({error}): see to it, then restart the centre"
            case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
                said = f"the file is damaged ({error}): restore a backup"
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                said = f"it cannot be written ({error}): check owner and mode"
            case _:
                said = str(error)
        raise StoreError(f"store {path}: {said}") from error
