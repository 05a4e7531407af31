"""The tables of the SQLite store, and how an older file becomes a current one.

A migration that has been released is never changed; a change of the tables is one more at the end. The number of those
that a file has seen is its schema version (`PRAGMA user_version`). Every table but the log's counters has a column
`version`: that of the record, which may change without the tables.
"""

import sqlite3
from collections.abc import Sequence

from ca.store import StoreError

APPLICATION_ID = 0x43554C56
"""`CULV`, in the file's header: tells our files from other SQLite files."""

MIGRATIONS = (
    """
    CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL, version INTEGER NOT NULL) STRICT;
    CREATE TABLE progress (one INTEGER PRIMARY KEY CHECK (one = 1), revision INTEGER NOT NULL,
                           compacted INTEGER NOT NULL) STRICT;
    INSERT INTO progress VALUES (1, 0, 0);
    CREATE TABLE resources (kind TEXT NOT NULL, namespace TEXT NOT NULL, name TEXT NOT NULL, revision INTEGER NOT NULL,
                            body BLOB NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (kind, namespace, name)) STRICT;
    CREATE TABLE changes (seq INTEGER PRIMARY KEY AUTOINCREMENT, revision INTEGER NOT NULL, kind TEXT NOT NULL,
                          namespace TEXT NOT NULL, name TEXT NOT NULL, deleted INTEGER NOT NULL,
                          version INTEGER NOT NULL) STRICT;
    CREATE INDEX changes_by_revision ON changes (revision);
    CREATE TABLE tokens (digest TEXT PRIMARY KEY, node TEXT NOT NULL, expires REAL NOT NULL, used REAL,
                         version INTEGER NOT NULL) STRICT;
    CREATE INDEX tokens_by_node ON tokens (node);
    CREATE TABLE certificates (serial TEXT PRIMARY KEY, identity TEXT NOT NULL, node TEXT NOT NULL,
                               not_after REAL NOT NULL, issuer TEXT NOT NULL, version INTEGER NOT NULL) STRICT;
    CREATE INDEX certificates_by_identity ON certificates (identity, not_after);
    CREATE INDEX certificates_by_end ON certificates (not_after);
    CREATE TABLE issuers (seq INTEGER PRIMARY KEY AUTOINCREMENT, fingerprint TEXT NOT NULL UNIQUE, role TEXT NOT NULL,
                          certificate BLOB NOT NULL, not_after REAL NOT NULL, retired INTEGER NOT NULL,
                          version INTEGER NOT NULL) STRICT;
    """,
    """
    DROP INDEX certificates_by_identity;
    ALTER TABLE certificates ADD COLUMN issued REAL NOT NULL DEFAULT 0;
    UPDATE certificates SET issued = not_after - 86400;
    CREATE INDEX certificates_by_holder ON certificates (identity, node, issued, not_after);
    CREATE INDEX certificates_by_node ON certificates (node, not_after);
    """,
    """
    DROP INDEX certificates_by_end;
    ALTER TABLE certificates ADD COLUMN of_use REAL NOT NULL DEFAULT 0;
    UPDATE certificates SET of_use = not_after + 2592000 WHERE node != '' AND identity LIKE '%/node/' || node;
    CREATE INDEX certificates_by_use ON certificates (max(not_after, of_use));
    """,
)


def migrate(db: sqlite3.Connection, migrations: Sequence[str] = MIGRATIONS) -> None:
    """Bring `db` (in autocommit mode, perhaps empty) to the newest schema, one transaction a step. StoreError when the
    file is not ours or from a newer version; then it is as it was."""
    (owner,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if owner != APPLICATION_ID and (version or tables):
        raise StoreError("the file is a database of another program: point --dir to a directory of its own")
    if version > len(migrations):
        raise StoreError(
            f"the store has schema {version}, this version of culvert knows up to {len(migrations)}: "
            "run the newer version that wrote it, or restore a backup from before the upgrade"
        )
    for number in range(version, len(migrations)):
        try:
            db.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; {migrations[number]};"
                f"PRAGMA user_version = {number + 1}; COMMIT;"
            )
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise
