"""Who may hold which certificate, over a real store."""

import itertools
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509 import Certificate

from ca import x509
from ca.authority import Authority, Chain, Lives, Refused
from ca.identity import CentralIdentity, Identity, NodeIdentity, OperatorIdentity, WorkloadIdentity
from ca.resources.metadata import Key
from ca.store import Batch, ConflictError, Stage, StoredResource, StoreError
from ca.store.sqlite import SqliteStore
from ca.tokens import JoinToken

NOW = datetime(2030, 5, 1, 12, 0, 0, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
CENTRE = "10.0.0.1:15012"
KEY = x509.new_key()
TD = "shop.example"
NODE = NodeIdentity(TD, "web-1")
WEB = WorkloadIdentity(TD, "shop", "web")
ALL: list[Identity] = [NODE, WEB, OperatorIdentity(TD, "admin"), CentralIdentity(TD, "central")]


def csr(identity: Identity) -> bytes:
    return x509.make_csr(KEY, identity)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore.open(tmp_path / "dir", create=True) as store:
        yield store


@pytest.fixture
def authority(store: SqliteStore) -> Authority:
    return Authority.create(store, store.keys, TD, NOW)


def token(authority: Authority, node: str = "web-1") -> JoinToken:
    return authority.create_token(node, 10 * MINUTE, NOW, CENTRE)


def on_record(store: SqliteStore) -> list[tuple[str, str]]:
    return [(c.identity, c.node) for c in store.certificates()]


def verified(chain: Chain, root: Certificate) -> Identity:
    """The identity of a chain whose signatures lead to `root`."""
    path = [*chain] if chain[-1] == root else [*chain, root]
    for below, above in itertools.pairwise(path):
        below.verify_directly_issued_by(above)
    return x509.identity_of(chain[0])


def test_a_node_joins_with_its_token(authority: Authority, store: SqliteStore) -> None:
    chain = authority.redeem(str(token(authority)), csr(NODE), NOW)
    assert verified(chain, authority.root) == NODE
    assert chain[0].not_valid_after_utc == NOW + 7 * DAY
    (record,) = store.certificates(str(NODE))
    assert (int(record.serial, 16), record.node, record.not_after) == (
        chain[0].serial_number,
        "web-1",
        (NOW + 7 * DAY).timestamp(),
    )
    assert record.issuer == x509.fingerprint(authority.issuer.cert)


def test_a_token_says_where_to_go_and_whom_to_trust(authority: Authority) -> None:
    carried = JoinToken.parse(str(token(authority)))
    assert (carried.address, carried.node, carried.root) == (CENTRE, "web-1", x509.fingerprint(authority.root))


def test_the_store_never_sees_the_secret(authority: Authority, store: SqliteStore) -> None:
    carried = token(authority)
    authority.redeem(carried, csr(NODE), NOW)
    everything = b"".join(p.read_bytes() for p in store.directory.rglob("*") if p.is_file())
    assert carried.digest.encode() in everything
    assert carried.secret not in everything
    assert carried.secret.hex().encode() not in everything


def test_no_key_is_in_the_database(authority: Authority, store: SqliteStore) -> None:
    everything = b"".join(p.read_bytes() for p in store.directory.glob("culvert.db*"))
    assert b"BEGIN CERTIFICATE" in everything
    assert b"PRIVATE KEY" not in everything


def _others(authority: Authority, tmp_path: Path) -> str:
    with SqliteStore.open(tmp_path / "other", create=True) as store:
        return str(token(Authority.create(store, store.keys, TD, NOW)))


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ("used", r"was used at 2030-05-01 12:00:00 UTC, and joins one node once"),
        (
            "expired",
            r"expired at 2030-05-01 12:10:00 UTC: have a new one made: culvert central token create --node web-1",
        ),
        ("forged", "knows no such token for node web-1"),
        ("renamed", "knows no such token for node web-2"),
        ("another mesh", "made by the centre of another mesh"),
        ("truncated", "copy all of it"),
        ("garbage", "is no join token"),
        ("another node", "for spiffe://shop.example/node/web-2, but the token is for node web-1"),
        ("another class", "for spiffe://shop.example/ns/shop/sa/web, but the token is for node web-1"),
        ("no request", "no signing request"),
    ],
)
def test_what_does_not_join(authority: Authority, store: SqliteStore, tmp_path: Path, case: str, what: str) -> None:
    good = token(authority)
    presented, request, now = str(good), csr(NODE), NOW
    match case:
        case "used":
            authority.redeem(good, csr(NODE), NOW)
        case "expired":
            now = NOW + 10 * MINUTE
        case "forged":
            presented = str(JoinToken.new(CENTRE, good.root, "web-1"))
        case "renamed":
            presented = str(JoinToken(CENTRE, good.root, "web-2", good.secret))
            request = csr(NodeIdentity(TD, "web-2"))
        case "another mesh":
            presented = _others(authority, tmp_path)
        case "truncated":
            presented = presented[:-20]
        case "garbage":
            presented = "hunter2"
        case "another node":
            request = csr(NodeIdentity(TD, "web-2"))
        case "another class":
            request = csr(WEB)
        case "no request":
            request = b"please"
    before = on_record(store)
    with pytest.raises(Refused, match=what):
        authority.redeem(presented, request, now)
    assert on_record(store) == before
    if case not in ("used", "expired"):
        authority.redeem(good, csr(NODE), NOW)  # what was refused burnt nothing


def test_a_token_is_used_by_one_of_many(authority: Authority) -> None:
    carried = token(authority)
    outcomes: list[str] = []
    start = threading.Barrier(6)

    def join() -> None:
        start.wait()
        try:
            authority.redeem(carried, csr(NODE), NOW)
            outcomes.append("joined")
        except Refused as error:
            outcomes.append(str(error)[:18])

    threads = [threading.Thread(target=join) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["joined"] + ["the token was used"] * 5


def test_joining_is_one_commit_with_what_the_registry_adds(tmp_path: Path) -> None:
    commits: list[int] = []

    def hook(stage: Stage, number: int) -> None:
        if stage is Stage.DURABLE:
            commits.append(number)

    with SqliteStore.open(tmp_path, create=True, hook=hook) as store:
        authority = Authority.create(store, store.keys, TD, NOW)
        carried = token(authority)
        commits.clear()
        node = StoredResource(Key("Node", "", "web-1"), 1, b"{}")
        authority.redeem(carried, csr(NODE), NOW, along=Batch(revision=1, put=(node,)))
        assert len(commits) == 1
        assert store.contents().resources == [node]
        # A registry that is behind gets its conflict, and the token is not spent on it.
        carried = token(authority)
        with pytest.raises(ConflictError, match="revision 1"):
            authority.redeem(carried, csr(NODE), NOW, along=Batch(revision=1, put=(node,)))
        authority.redeem(carried, csr(NODE), NOW, along=Batch(revision=2, delete=(node.key,)))


def test_nothing_is_answered_that_is_not_on_record(tmp_path: Path) -> None:
    broken = False

    def hook(stage: Stage, number: int) -> None:
        if broken and stage is Stage.WRITTEN:
            raise StoreError("the disk is full")

    with SqliteStore.open(tmp_path, create=True, hook=hook) as store:
        authority = Authority.create(store, store.keys, TD, NOW)
        carried = token(authority)
        broken = True
        with pytest.raises(StoreError):
            authority.redeem(carried, csr(NODE), NOW)
        with pytest.raises(StoreError):
            authority.renew_node(NODE, csr(NODE), NOW)
        broken = False
        assert on_record(store) == []
        authority.redeem(carried, csr(NODE), NOW)


def test_used_and_expired_tokens_are_forgotten_in_the_end(authority: Authority, store: SqliteStore) -> None:
    authority.redeem(token(authority), csr(NODE), NOW)
    authority.create_token("web-2", MINUTE, NOW + 6 * DAY, CENTRE)
    assert len(store.tokens()) == 2
    authority.create_token("web-2", MINUTE, NOW + 8 * DAY, CENTRE)
    assert [t.node for t in store.tokens()] == ["web-2", "web-2"]


@pytest.mark.parametrize("ttl", [timedelta(0), -MINUTE, 8 * DAY])
def test_tokens_live_for_a_bounded_time(authority: Authority, ttl: timedelta) -> None:
    with pytest.raises(Refused, match="at most 7 days"):
        authority.create_token("web-1", ttl, NOW, CENTRE)


def test_tokens_are_for_possible_nodes(authority: Authority) -> None:
    with pytest.raises(Refused, match="'Web 1' is not a name"):
        authority.create_token("Web 1", MINUTE, NOW, CENTRE)


# The other ways to a certificate


def hosts(*identities: WorkloadIdentity) -> frozenset[WorkloadIdentity]:
    return frozenset(identities)


def test_a_node_gets_certificates_for_what_it_hosts(authority: Authority, store: SqliteStore) -> None:
    chain = authority.sign_workload(NODE, csr(WEB), hosts(WEB).__contains__, NOW)
    assert verified(chain, authority.root) == WEB
    assert chain[0].not_valid_after_utc == NOW + DAY
    assert on_record(store) == [(str(WEB), "web-1")]


def test_a_node_gets_none_for_what_it_does_not_host(authority: Authority, store: SqliteStore) -> None:
    other = WorkloadIdentity(TD, "shop", "db")
    with pytest.raises(Refused, match=r"no registered workload of node web-1 has the identity .*/sa/db"):
        authority.sign_workload(NODE, csr(other), hosts(WEB).__contains__, NOW)
    foreign = WorkloadIdentity("other.example", "shop", "web")
    with pytest.raises(Refused, match=r"no workload of shop\.example"):
        authority.sign_workload(NODE, csr(foreign), hosts(foreign).__contains__, NOW)
    stranger = NodeIdentity("other.example", "web-1")
    with pytest.raises(Refused, match="not of this mesh"):
        authority.sign_workload(stranger, csr(WEB), hosts(WEB).__contains__, NOW)
    with pytest.raises(Refused, match="not of this mesh"):
        authority.renew_node(stranger, csr(stranger), NOW)
    assert on_record(store) == []


def test_a_node_renews_itself(authority: Authority, store: SqliteStore) -> None:
    chain = authority.renew_node(NODE, csr(NODE), NOW + 3 * DAY)
    assert verified(chain, authority.root) == NODE
    assert chain[0].not_valid_after_utc == NOW + 10 * DAY
    with pytest.raises(Refused, match="a node renews its own certificate only"):
        authority.renew_node(NODE, csr(NodeIdentity(TD, "web-2")), NOW)
    assert on_record(store) == [(str(NODE), "web-1")]


def test_an_operator_and_the_centre_get_theirs(authority: Authority, store: SqliteStore) -> None:
    admin, central = ALL[2:]
    assert verified(authority.sign_operator("admin", csr(admin), NOW), authority.root) == admin
    chain = authority.sign_central("central", csr(central), NOW)
    assert verified(chain, authority.root) == central
    assert chain[-1] == authority.root
    assert on_record(store) == [(str(central), ""), (str(admin), "")]


def test_no_class_of_identity_is_reached_by_the_way_of_another(authority: Authority, store: SqliteStore) -> None:
    """Every way with every class of request: only the diagonal signs."""
    signed: list[tuple[int, int]] = []
    for i, wanted in enumerate(ALL):
        ways = [
            lambda w=wanted: authority.renew_node(NODE, csr(w), NOW),
            lambda w=wanted: authority.sign_workload(NODE, csr(w), lambda _: True, NOW),
            lambda w=wanted: authority.sign_operator("admin", csr(w), NOW),
            lambda w=wanted: authority.sign_central("central", csr(w), NOW),
        ]
        for j, way in enumerate(ways):
            try:
                way()
                signed.append((i, j))
            except Refused:
                pass
    assert signed == [(n, n) for n in range(4)]
    assert len(store.certificates()) == 4


# Beginning and end


def test_the_authority_comes_back(authority: Authority, store: SqliteStore) -> None:
    carried = token(authority)
    store.close()
    with SqliteStore.open(store.directory) as store:
        again = Authority.open(store, store.keys, Lives(node=DAY))
        chain = again.redeem(carried, csr(NODE), NOW)
        assert verified(chain, authority.root) == NODE
        assert chain[0].not_valid_after_utc == NOW + DAY
        assert again.trust_domain == TD


def test_a_mesh_is_made_once(authority: Authority, store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="holds a mesh already"):
        Authority.create(store, store.keys, TD, NOW)


def test_a_mesh_begins_in_one_commit_with_what_the_registry_adds(store: SqliteStore) -> None:
    """Killed in the middle, `init` can be said again."""
    late = Batch(revision=7, delete=(Key("Mesh", "", "mesh"),))
    with pytest.raises(ConflictError):
        Authority.create(store, store.keys, TD, NOW, along=late)
    mesh = StoredResource(Key("Mesh", "", "mesh"), 1, b"{}")
    Authority.create(store, store.keys, TD, NOW, along=Batch(revision=1, put=(mesh,)))
    assert store.contents().resources == [mesh]


def test_an_empty_store_has_no_authority(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="culvert central init"):
        Authority.open(store, store.keys)


def test_the_root_s_key_can_be_away_but_the_issuing_one_cannot(authority: Authority, store: SqliteStore) -> None:
    (store.directory / "keys" / f"{x509.fingerprint(authority.root)}.pem").unlink()
    Authority.open(store, store.keys).renew_node(NODE, csr(NODE), NOW)
    (store.directory / "keys" / f"{x509.fingerprint(authority.issuer.cert)}.pem").unlink()
    with pytest.raises(StoreError, match="is missing: bring it back"):
        Authority.open(store, store.keys)


def test_an_ended_issuer_signs_nothing(authority: Authority, store: SqliteStore) -> None:
    with pytest.raises(Refused, match="issuer ended at"):
        authority.renew_node(NODE, csr(NODE), NOW + 366 * DAY)
    assert on_record(store) == []
