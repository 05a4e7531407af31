"""The embedded store: whole commits, in order, on disk; whatever kills it."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ca.resources.metadata import Key
from ca.store import (
    Batch,
    Change,
    ConflictError,
    Stage,
    StoredCertificate,
    StoredIssuer,
    StoredResource,
    StoredToken,
    StoreError,
)
from ca.store.schema import MIGRATIONS, migrate
from ca.store.sqlite import SqliteStore

WEB, DB = Key("Workload", "shop", "web"), Key("Workload", "shop", "db")


def put(revision: int, *keys: Key, body: bytes = b"{}") -> Batch:
    return Batch(revision=revision, put=tuple(StoredResource(k, revision, body) for k in keys))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore.open(tmp_path / "dir", create=True) as store:
        yield store


def reopened(store: SqliteStore) -> SqliteStore:
    store.close()
    return SqliteStore.open(store.directory)


def test_what_was_committed_is_there_after_a_restart(store: SqliteStore) -> None:
    incarnation = store.meta()["incarnation"]
    store.commit(put(1, WEB, DB, body=b"one"))
    store.commit(Batch(revision=2, delete=(DB,), put=(StoredResource(WEB, 2, b"two"),), meta={"a": "b"}))
    with reopened(store) as again:
        contents = again.contents()
        assert contents.revision == 2
        assert contents.resources == [StoredResource(WEB, 2, b"two")]
        assert contents.changes == [
            Change(1, WEB, False),
            Change(1, DB, False),
            Change(2, DB, True),
            Change(2, WEB, False),
        ]
        assert contents.compacted == 0
        assert again.meta() == {"incarnation": incarnation, "a": "b"}


def test_stores_differ_in_their_incarnation(tmp_path: Path) -> None:
    with SqliteStore.open(tmp_path / "a", create=True) as a, SqliteStore.open(tmp_path / "b", create=True) as b:
        assert a.meta()["incarnation"] != b.meta()["incarnation"]


def test_revisions_have_no_gap_and_are_taken_once(store: SqliteStore) -> None:
    store.commit(put(1, WEB))
    for late in (1, 3, 0):
        with pytest.raises(ConflictError, match=f"revision {late} does not follow the stored one, 1"):
            store.commit(put(late, DB))
    assert [r.key for r in store.contents().resources] == [WEB]


def test_a_batch_has_a_revision_exactly_with_resources() -> None:
    with pytest.raises(ValueError, match="exactly if"):
        Batch(revision=1)
    with pytest.raises(ValueError, match="exactly if"):
        Batch(delete=(WEB,))
    with pytest.raises(ValueError, match="must be that of the batch"):
        Batch(revision=2, put=(StoredResource(WEB, 1, b""),))


def test_a_token_burns_once_and_nothing_else_is_written_then(store: SqliteStore) -> None:
    store.commit(Batch(tokens=(StoredToken("d1", "web-1", 100.0), StoredToken("d2", "web-2", 100.0))))
    store.commit(Batch(burn=("d1",), burnt=7.0))
    assert [t.used for t in store.tokens("web-1")] == [7.0]
    for digest in ("d1", "never"):
        with pytest.raises(ConflictError, match="token was used"):
            store.commit(
                Batch(burn=("d2", digest), burnt=8.0, certificates=(StoredCertificate("01", "i", "n", 1, "f"),))
            )
    assert [t.used for t in store.tokens()] == [7.0, None]
    assert store.certificates() == []


def test_certificates_are_found_by_identity_and_forgotten(store: SqliteStore) -> None:
    old, new = (
        StoredCertificate("01", "spiffe://a", "n", 10.0, "f", 1.0),
        StoredCertificate("02", "spiffe://a", "n", 90.0, "f", 5.0),
    )
    other = StoredCertificate("03", "spiffe://b", "m", 50.0, "f")
    store.commit(Batch(certificates=(new, old, other), tokens=(StoredToken("d", "n", 10.0),)))
    assert store.certificates() == [old, other, new]
    assert store.certificates("spiffe://a") == [old, new]
    assert store.certificates(node="m") == [other]
    assert store.certificates("spiffe://a", serial="02") == [new]
    assert store.certificates(serial="04") == []
    store.commit(Batch(forget_before=20.0))
    assert store.certificates() == [other, new]
    assert store.tokens() == []


def test_what_is_of_use_beyond_its_end_is_kept_so_long(store: SqliteStore) -> None:
    node = StoredCertificate("01", "spiffe://a/node/n", "n", 10.0, "f", 1.0, 40.0)
    store.commit(Batch(certificates=(node,)))
    store.commit(Batch(forget_before=39.0))
    assert store.certificates() == [node]
    store.commit(Batch(forget_before=41.0))
    assert store.certificates() == []


def test_a_holder_is_known_by_what_it_was_given_last(store: SqliteStore) -> None:
    def given(serial: str, node: str, issued: float, ends: float) -> StoredCertificate:
        return StoredCertificate(serial, "spiffe://a", node, ends, "f", issued)

    store.commit(Batch(certificates=(given("1", "n", 1.0, 99.0), given("2", "n", 5.0, 9.0), given("3", "m", 2.0, 4.0))))
    assert set(store.holders()) == {("spiffe://a", "n", 5.0, 9.0), ("spiffe://a", "m", 2.0, 4.0)}


def test_issuers_come_in_order_and_can_retire(store: SqliteStore) -> None:
    first, second = StoredIssuer("f1", "root", b"pem", 5.0), StoredIssuer("f2", "root", b"pem", 5.0)
    store.commit(Batch(issuers=(first,)))
    store.commit(Batch(issuers=(second,)))
    store.commit(Batch(issuers=(StoredIssuer("f1", "root", b"pem", 5.0, retired=True),)))
    assert [(i.fingerprint, i.retired) for i in store.issuers()] == [("f1", True), ("f2", False)]


def test_the_change_log_is_bounded_and_says_from_where_it_is_whole(tmp_path: Path) -> None:
    with SqliteStore.open(tmp_path, create=True, kept=5) as store:
        for revision in range(1, 10):
            store.commit(put(revision, WEB))
        contents = store.contents()
        assert [c.revision for c in contents.changes] == [5, 6, 7, 8, 9]
        assert contents.compacted == 4
        # Six changes at once: a part of them would look like the whole revision, so none stays.
        store.commit(put(10, *(Key("Workload", "shop", f"w{n}") for n in range(6))))
        contents = store.contents()
        assert contents.changes == []
        assert contents.compacted == contents.revision == 10
        assert len(contents.resources) == 7


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=1, max_size=4), max_size=12))
@settings(max_examples=40, deadline=None)
def test_resources_and_log_agree_with_a_plain_model(history: list[list[tuple[str, bool]]]) -> None:
    with tempfile.TemporaryDirectory() as directory, SqliteStore.open(Path(directory), create=True, kept=6) as store:
        state: dict[Key, int] = {}
        seen = {0: dict(state)}
        for revision, step in enumerate(history, 1):
            last = {Key("Node", "", name): deleted for name, deleted in step}
            gone = tuple(k for k, deleted in last.items() if deleted)
            kept = tuple(StoredResource(k, revision, b"") for k, deleted in last.items() if not deleted)
            store.commit(Batch(revision=revision, put=kept, delete=gone))
            state = {k: r for k, r in state.items() if k not in gone} | {r.key: revision for r in kept}
            seen[revision] = dict(state)
        contents = store.contents()
        now = {r.key: r.revision for r in contents.resources}
        assert now == state
        for since in range(contents.compacted, len(history) + 1):
            # Who knows the state at `since` and is told of the changes after it knows the state now.
            view = dict(seen[since])
            for change in contents.changes:
                if change.revision > since:
                    view.pop(change.key, None)
                    if change.key in now and not change.deleted:
                        view[change.key] = now[change.key]
            assert view == state


# Who may open what


def test_one_process_has_the_directory(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match=f"is in use by process {os.getpid()}: .* stop that one first"):
        SqliteStore.open(store.directory)
    reopened(store).close()


def test_a_directory_without_a_mesh_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="culvert central init"):
        SqliteStore.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_only_the_owner_can_read(store: SqliteStore) -> None:
    store.commit(put(1, WEB))
    for path in (store.directory, *store.directory.iterdir()):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_newer_schema_is_refused_and_left_alone(store: SqliteStore) -> None:
    store.close()
    path = store.directory / "culvert.db"
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=f"has schema {len(MIGRATIONS) + 1}, .* knows up to {len(MIGRATIONS)}"):
        SqliteStore.open(store.directory)
    assert path.read_bytes() == before


def test_a_record_of_a_newer_version_is_refused(store: SqliteStore) -> None:
    store.commit(put(1, WEB))
    store.close()
    with sqlite3.connect(store.directory / "culvert.db") as db:
        db.execute("UPDATE resources SET version = 99")
    db.close()
    with SqliteStore.open(store.directory) as again, pytest.raises(StoreError, match="record of version 99"):
        again.contents()


def test_files_of_others_are_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "culvert.db") as db:
        db.execute("CREATE TABLE theirs (a)")
    db.close()
    with pytest.raises(StoreError, match="another program"):
        SqliteStore.open(tmp_path)
    (tmp_path / "culvert.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match=r"damaged .* restore a backup"):
        SqliteStore.open(tmp_path)


def _memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


def test_migrations_run_once_each_in_order() -> None:
    db = _memory()
    migrate(db)
    migrate(db)
    db.execute("INSERT INTO meta VALUES ('a', 'b', 1)")
    migrate(db, (*MIGRATIONS, "ALTER TABLE meta ADD COLUMN note TEXT", "UPDATE meta SET note = 'x'"))
    assert db.execute("SELECT name, note FROM meta").fetchall() == [("a", "x")]
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 2,)
    db.close()


def test_an_older_store_keeps_what_its_nodes_may_come_back_by() -> None:
    db = _memory()
    migrate(db, MIGRATIONS[:2])
    given = (("1", "spiffe://a/node/n"), ("2", "spiffe://a/ns/node/sa/n"), ("3", "spiffe://a/node/m"))
    db.executemany("INSERT INTO certificates VALUES (?, ?, 'n', 10.0, 'f', 1, 1.0)", given)
    migrate(db)
    assert db.execute("SELECT of_use FROM certificates").fetchall() == [(10.0 + 30 * 86400,), (0.0,), (0.0,)]
    db.close()


def test_a_failing_migration_leaves_the_schema_before_it() -> None:
    db = _memory()
    broken = (*MIGRATIONS, "CREATE TABLE half (a); CREATE TABLE meta (a)")
    with pytest.raises(sqlite3.OperationalError):
        migrate(db, broken)
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)
    migrate(db)
    db.close()


# What breaks


class Stop(Exception):
    pass


@pytest.mark.parametrize("stage", [Stage.BEGUN, Stage.WRITTEN])
def test_an_aborted_commit_leaves_nothing(tmp_path: Path, stage: Stage) -> None:
    stages: list[tuple[Stage, int]] = []

    def hook(at: Stage, number: int) -> None:
        stages.append((at, number))
        if (at, number) == (stage, 2):
            raise Stop

    with SqliteStore.open(tmp_path, create=True, hook=hook) as store:
        store.commit(put(1, WEB))
        with pytest.raises(Stop):
            store.commit(put(2, DB))
        assert [r.key for r in store.contents().resources] == [WEB]
        store.commit(put(2, DB))
        assert store.contents().revision == 2
    assert stages[:3] == [(s, 1) for s in Stage]
    assert stages[-1] == (Stage.DURABLE, 3)


CHILD = """
import os, signal, sys
from pathlib import Path
from ca.resources.metadata import Key
from ca.store import Batch, Stage, StoredResource, StoredToken
from ca.store.sqlite import SqliteStore

def hook(stage, number):
    if (stage.value, number) == (sys.argv[2], 4):
        os.kill(os.getpid(), signal.SIGKILL)

store = SqliteStore.open(Path(sys.argv[1]), create=True, hook=hook)
for n in range(1, 10):
    resource = StoredResource(Key("Node", "", f"n{n}"), n, b"x" * 50_000)
    store.commit(Batch(revision=n, put=(resource,), tokens=(StoredToken(str(n), "n", 1.0),)))
    print(n, flush=True)
"""


def _child(code: str, *args: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize(("stage", "survivors"), [(Stage.BEGUN, 3), (Stage.WRITTEN, 3), (Stage.DURABLE, 4)])
def test_a_kill_in_the_middle_of_a_commit_loses_it_whole_or_not_at_all(
    tmp_path: Path, stage: Stage, survivors: int
) -> None:
    result = _child(CHILD, str(tmp_path), stage.value)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert result.stdout.split() == ["1", "2", "3"]
    with SqliteStore.open(tmp_path) as store:
        contents = store.contents()
        assert contents.revision == survivors
        assert [r.key.name for r in contents.resources] == [f"n{n}" for n in range(1, survivors + 1)]
        assert [c.revision for c in contents.changes] == [*range(1, survivors + 1)]
        assert len(store.tokens()) == survivors
        store.commit(put(survivors + 1, WEB))


def test_a_kill_at_any_moment_loses_nothing_that_was_answered(tmp_path: Path) -> None:
    endless = CHILD.replace("range(1, 10)", "range(1, 10**6)").replace("50_000", "5_000")
    with subprocess.Popen(
        [sys.executable, "-c", endless, tmp_path, "never"], stdout=subprocess.PIPE, text=True
    ) as child:
        try:
            assert child.stdout is not None
            answered = 0
            while answered < 50:
                answered = int(child.stdout.readline())
        finally:
            child.kill()
        answered = int([answered, *child.stdout.read().split("\n")[:-1]][-1])
    with SqliteStore.open(tmp_path) as store:
        contents = store.contents()
        assert answered <= contents.revision <= answered + 1
        assert len(contents.resources) == contents.revision


FULL = """
import subprocess, sys
from pathlib import Path
from ca.resources.metadata import Key
from ca.store import Batch, StoredResource, StoreError
from ca.store.sqlite import SqliteStore

subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", sys.argv[1]], check=True)
filler = Path(sys.argv[1], "filler")
filler.write_bytes(b"x" * 200_000)
store = SqliteStore.open(Path(sys.argv[1]), create=True)
n = 1
try:
    while n < 1000:
        store.commit(Batch(revision=n, put=(StoredResource(Key("Node", "", f"n{n}"), n, b"x" * 20_000),)))
        n += 1
except StoreError as error:
    print(error)
def names():
    return sorted(r.key.name for r in store.contents().resources)
assert n > 5 and names() == sorted(f"n{i}" for i in range(1, n)), (n, names())
store.close()
store = SqliteStore.open(Path(sys.argv[1]))
assert store.contents().revision == n - 1
filler.unlink()
store.commit(Batch(revision=n, delete=(Key("Node", "", "n1"),)))
print("goes on")
"""


def _why_no_mounts() -> str:
    if not shutil.which("unshare"):
        return "needs the command unshare: apt-get install util-linux"
    tried = subprocess.run(["unshare", "-rm", "true"], capture_output=True, text=True, check=False)
    return tried.stderr and f"unshare -rm true: {tried.stderr.strip()}"


NO_MOUNTS = _why_no_mounts()


@pytest.mark.skipif(bool(NO_MOUNTS), reason=NO_MOUNTS)
def test_a_full_disk_is_said_and_leaves_everything_whole(tmp_path: Path) -> None:
    result = _child(FULL, str(tmp_path), prefix=("unshare", "-rm"))
    assert result.returncode == 0, result.stderr
    assert "the disk is full, nothing was changed" in result.stdout
    assert "goes on" in result.stdout


def test_a_failed_write_ends_all_commits(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync nobody knows what is on disk; to go on would be to guess."""
    failure = sqlite3.OperationalError("disk I/O error")
    failure.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC

    def fail(batch: Batch) -> None:
        raise failure

    with monkeypatch.context() as broken:
        broken.setattr(store, "_write", fail)
        with pytest.raises(StoreError, match="the disk failed"):
            store.commit(put(1, WEB))
    with pytest.raises(StoreError, match="failed to write earlier"):
        store.commit(put(1, WEB))
    with reopened(store) as again:
        again.commit(put(1, WEB))


def test_commits_from_many_threads_do_not_mix(store: SqliteStore) -> None:
    store.commit(Batch(tokens=tuple(StoredToken(f"d{n}", "n", 1.0) for n in range(5))))

    def burn(n: int) -> bool:
        try:
            store.commit(Batch(burn=(f"d{n % 5}",), burnt=1.0))
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(burn, range(40))) == 5


def test_also_takes_the_registry_s_part_only() -> None:
    joined = Batch(burn=("d",), meta={"a": "1"}).also(Batch(revision=4, delete=(WEB,), meta={"b": "2"}))
    assert (joined.revision, joined.delete, joined.burn, joined.meta) == (4, (WEB,), ("d",), {"a": "1", "b": "2"})
    refused: list[Callable[[], Batch]] = [
        lambda: Batch().also(Batch(burn=("d",))),
        lambda: Batch(revision=1, delete=(WEB,)).also(Batch(revision=2, delete=(WEB,))),
    ]
    for call in refused:
        with pytest.raises(ValueError, match="registry's part"):
            call()
