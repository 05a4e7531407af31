"""A centre that looks after its certificates for years, in seconds."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import structlog
from cryptography.x509 import Certificate

from ca import x509
from ca.authority import Authority
from ca.central import load_central
from ca.centre import Centre
from ca.identity import NodeIdentity, WorkloadIdentity
from ca.keeper import Keeper
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Metadata
from ca.resources.revocation import Revocation, RevocationSpec
from ca.settings import SettingsError
from ca.store import Stage, StoreError
from ca.store.sqlite import SqliteStore
from tests.ca.objects import node, workload

TD = "shop.example"
START = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
A, WEB = NodeIdentity(TD, "a"), WorkloadIdentity(TD, "shop", "web")


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now.timestamp()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore.open(tmp_path / "dir", create=True) as store:
        Authority.create(store, store.keys, TD, START)
        yield store


@pytest.fixture
async def centre(store: SqliteStore, clock: Clock) -> Centre:
    made = Centre(store, Authority.open(store, store.keys), advertise="x:1", clock=clock)
    web = workload("web", labels={"mesh": "on"})
    await made.apply([Mesh(metadata=Metadata("mesh"), spec=MeshSpec(TD)), node("a"), web])
    return made


def _csr(who: NodeIdentity | WorkloadIdentity) -> str:
    return x509.make_csr(x509.new_key(), who).decode()


def _chain(pem: str) -> list[Certificate]:
    return x509.load_chain(pem.encode())


async def _alarms(centre: Centre) -> list[str]:
    return [f.text for f in (await centre.trust.look_over()).findings]


async def test_issuing_certificates_follow_each_other_up_to_the_end_of_the_root(centre: Centre, clock: Clock) -> None:
    """One look a day for eleven years. Every leaf is good for its whole life, until the root ends."""
    keeper, (root,) = Keeper(centre), centre.authority.roots
    issuers = {x509.fingerprint(centre.authority.issuer.cert)}
    while clock.now < root.not_valid_after_utc - 8 * DAY:
        clock.now += DAY
        await keeper.look()
        issuers.add(x509.fingerprint(centre.authority.issuer.cert))
        if clock.now.day == 1:
            leaf, issuing = _chain((await centre.renew(A, _csr(A))).chain)
            assert leaf.not_valid_after_utc == clock.now + 7 * DAY
            leaf.verify_directly_issued_by(issuing)
            issuing.verify_directly_issued_by(root)
    assert len(issuers) == 19  # one each half year, and the last ends with the root
    assert any("root" in a for a in await _alarms(centre))


async def test_what_the_old_one_signed_stays_good_and_a_restart_takes_the_new_one(
    centre: Centre, clock: Clock, store: SqliteStore
) -> None:
    before = _chain((await centre.sign(A, _csr(WEB))).chain)
    clock.now += 200 * DAY
    await Keeper(centre).look()
    after = _chain((await centre.sign(A, _csr(WEB))).chain)
    assert before[1] != after[1]
    for leaf, issuing in (before, after):
        leaf.verify_directly_issued_by(issuing)
        issuing.verify_directly_issued_by(centre.authority.root)
    assert Authority.open(store, store.keys).issuer.cert == after[1]
    assert [(i.role, i.retired) for i in store.issuers()] == [("root", False), ("issuing", True), ("issuing", False)]


async def test_without_the_root_s_key_it_says_so_every_day_and_goes_on(
    centre: Centre, clock: Clock, store: SqliteStore
) -> None:
    key = store.directory / "keys" / f"{x509.fingerprint(centre.authority.root)}.pem"
    key.rename(away := store.directory / "safe.pem")
    clock.now += 200 * DAY
    keeper = Keeper(centre)
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            clock.now += timedelta(hours=1)
            await keeper.look()
    said = [entry for entry in logs if entry["event"] == "issuing-certificate-not-renewed"]
    assert len(said) == 5
    assert f"private key {key} is missing" in said[0]["about"]
    # Long before anything is late, whoever asks hears of it.
    told = [said[0]["about"]]
    assert centre.status().alarms == (await centre.trust.status(10, DAY)).alarms == told
    await centre.renew(A, _csr(A))
    clock.now += 100 * DAY
    assert any("issuing certificate" in a and "keys/" in a for a in await _alarms(centre))
    assert any("issuing certificate" in a for a in centre.status().alarms)
    away.rename(key)
    clock.now += timedelta(hours=1)
    await keeper.look()
    assert not any("issuing certificate" in a for a in centre.status().alarms)
    assert not centre.trust.failing


async def test_a_full_disk_is_tried_again_ever_less_often_and_then_works(tmp_path: Path, clock: Clock) -> None:
    full = False

    def hook(stage: Stage, number: int) -> None:
        if full and stage is Stage.WRITTEN:
            raise StoreError("the disk is full, nothing was changed: make room and try again")

    with SqliteStore.open(tmp_path / "dir", create=True, hook=hook) as store:
        old = Authority.create(store, store.keys, TD, START).issuer.cert
        centre = Centre(store, Authority.open(store, store.keys), advertise="x:1", clock=clock)
        keeper = Keeper(centre)
        clock.now += 200 * DAY
        full = True
        with structlog.testing.capture_logs() as logs:
            for _ in range(24 * 60):
                await keeper.look()
                clock.now += timedelta(minutes=1)
        assert [e["event"] for e in logs] == ["issuing-certificate-not-renewed"]
        assert "make room" in logs[0]["about"]
        assert Authority.open(store, store.keys).issuer.cert == centre.authority.issuer.cert == old
        assert len(list((store.directory / "keys").iterdir())) < 40  # one that is of no use for each try
        full = False
        clock.now -= 10 * DAY  # and somebody sets the clock
        await keeper.look()
        assert Authority.open(store, store.keys).issuer.cert == centre.authority.issuer.cert != old


async def test_a_store_that_cannot_be_read_is_an_alarm_until_it_can(
    centre: Centre, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise StoreError("the disk does not answer")

    keeper = Keeper(centre)
    with monkeypatch.context() as patched:
        patched.setattr(store, "holders", broken)
        for _ in range(2):
            await keeper.look()
            (alarm,) = centre.status().alarms
            assert "the disk does not answer" in alarm
    await keeper.look()
    assert centre.status().alarms == []


async def test_a_centre_that_slept_through_comes_back(centre: Centre, clock: Clock) -> None:
    clock.now += 500 * DAY
    await Keeper(centre).look()
    assert _chain((await centre.renew(A, _csr(A))).chain)[0].not_valid_after_utc == clock.now + 7 * DAY


async def test_who_was_not_renewed_is_told_of_and_who_left_is_not(centre: Centre, clock: Clock) -> None:
    await centre.renew(A, _csr(A))
    await centre.sign(A, _csr(WEB))
    clock.now += timedelta(hours=17)
    assert await _alarms(centre) == []
    clock.now += timedelta(hours=2)
    (said,) = await _alarms(centre)
    assert said.startswith(f"certificate of {WEB} on node a ends at 2030-01-02 00:00 UTC: it was not renewed")
    await centre.label(workload("web").key, {"mesh": None})
    assert await _alarms(centre) == []
    clock.now += 6 * DAY
    (said,) = await _alarms(centre)
    assert said.startswith("certificate of node a ends at")
    trust = await centre.trust.status(10, DAY)
    assert [(c.what, c.standing) for c in trust.certificates] == [
        ("node", "late"),
        ("issuing", "good"),
        ("root", "good"),
    ]
    assert {(c.what, c.good, c.late, c.ended) for c in trust.counts} == {
        ("root", 1, 0, 0),
        ("issuing", 1, 0, 0),
        ("node", 0, 1, 0),
    }
    assert trust.alarms == [said]


async def test_the_mesh_says_how_long_certificates_of_workloads_live(centre: Centre, clock: Clock) -> None:
    async def left() -> timedelta:
        return _chain((await centre.sign(A, _csr(WEB))).chain)[0].not_valid_after_utc - clock.now

    assert await left() == DAY
    for said, life in (("1h", timedelta(hours=1)), ("90d", 90 * DAY), (None, DAY)):
        await centre.apply([Mesh(Metadata("mesh"), MeshSpec(TD, certificate_life=said))])
        assert await left() == life
        # Each is judged by its own life, not by what the mesh says now.
        assert await _alarms(centre) == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("59m", "certificateLife: 59m is no life for a certificate: use 1h to 90d"),
        ("91d", "certificateLife: 91d is no life for a certificate: use 1h to 90d"),
        ("0", "certificateLife: 0s is no life"),
        ("soon", "certificateLife: 'soon' is no length of time; write it as in 90s, 10m, 24h or 30d"),
        ("", "certificateLife: '' is no length of time"),
    ],
)
def test_lives_that_nobody_should_have(said: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        MeshSpec(TD, certificate_life=said)
    if not said.isalpha() and said:
        with pytest.raises(SettingsError, match=why.replace("certificateLife", "lives.workload")):
            load_central({"CULVERT_CENTRAL_LIVES_WORKLOAD": said}, {})


# Revocations


def _revoke(identity: object = "", *serials: str) -> Revocation:
    return Revocation(Metadata("it"), RevocationSpec(str(identity), serials))


def _kept(centre: Centre) -> Revocation:
    (found,) = centre.state.revoked.objects.values()
    return found


async def test_with_a_node_go_the_certificates_of_its_workloads_but_not_those_of_others(centre: Centre) -> None:
    await centre.apply([node("b"), workload("web2", on="b")])
    b, web2 = NodeIdentity(TD, "b"), WorkloadIdentity(TD, "shop", "web2")
    ours = [_chain(r.chain)[0] for r in (await centre.renew(A, _csr(A)), await centre.sign(A, _csr(WEB)))]
    theirs = [_chain(r.chain)[0] for r in (await centre.renew(b, _csr(b)), await centre.sign(b, _csr(web2)))]
    await centre.apply([_revoke(A)])
    assert [bool(centre.state.revoked.serial(x509.serial(c))) for c in (*ours, *theirs)] == [True, True, False, False]


async def test_ended_certificates_are_forgotten_and_revoked_identities_are_not(centre: Centre, clock: Clock) -> None:
    serial = x509.serial(_chain((await centre.sign(A, _csr(WEB))).chain)[0])
    await centre.apply([_revoke("", serial)])
    assert _kept(centre).spec.ends == "2030-01-02T00:00:01Z"
    keeper = Keeper(centre)
    for hours, there in ((47, True), (2, False)):
        clock.now += timedelta(hours=hours)
        await keeper.look()
        assert bool(centre.state.revoked.objects) is there
    await centre.apply([_revoke(WEB)])
    clock.now += 1000 * DAY
    await keeper.look()
    assert _kept(centre).spec.identity == str(WEB)


async def test_a_serial_that_nobody_knows_is_kept(centre: Centre, clock: Clock) -> None:
    await centre.apply([_revoke("", "abc")])
    clock.now += 1000 * DAY
    await Keeper(centre).look()
    assert _kept(centre).spec.serials == ("abc",)
