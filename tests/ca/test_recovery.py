"""Nodes that come back after their certificate's end: at a real centre whose clock the test moves."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
import trio

from agent.leaf import Leaf, read_leaf, request
from ca import http, possession, tls, x509
from ca.channel import connect
from ca.client import Client, Refusal
from ca.contract import VERSION, Hello, JoinRequest, Problem, RecoverRequest, TokenRequest
from ca.identity import CentralIdentity, Identity, NodeIdentity, OperatorIdentity, WorkloadIdentity, parse
from ca.resources.metadata import Key, Metadata
from ca.resources.revocation import Revocation, RevocationSpec, revocation_name
from ca.revoking import restored
from ca.tokens import JoinToken
from tests.ca.objects import workload
from tests.ca.running import DOMAIN, Running, running

DAY = 86400.0
WEB, API = NodeIdentity(DOMAIN, "web-1"), WorkloadIdentity(DOMAIN, "shop", "api")


@pytest.fixture
async def centre(tmp_path: Path):
    async with running(tmp_path) as found:
        yield found


async def joined(centre: Running, name: str = "web-1", address: str = "10.0.0.1") -> Leaf:
    """A node's certificate, as join gave it: good for seven days."""
    token = (await centre.operator().create_token(TokenRequest(name, 60.0))).token
    key, csr = request(NodeIdentity(DOMAIN, name))
    answer = await Client.joining(JoinToken.parse(token)).join(JoinRequest(token, csr.decode(), address))
    return read_leaf(answer.chain.encode(), key)


def _by(centre: Running, leaf: Leaf) -> Client:
    return Client.over_tls(centre.address, DOMAIN, centre.roots, (leaf.chain, leaf.key))


def stranger(centre: Running) -> Client:
    return Client.over_tls(centre.address, DOMAIN, centre.roots, None)


async def recover(centre: Running, leaf: Leaf, identity: Identity | None = None) -> Leaf:
    key, csr = request(identity or parse(leaf.uri))
    answer = await stranger(centre).recover(leaf.chain.decode(), leaf.key.decode(), csr.decode())
    return read_leaf(answer.chain.encode(), key)


def forged(centre: Running, identity: Identity, ended: timedelta) -> Leaf:
    """A certificate that our issuer signed and that ended so long ago."""
    key = x509.new_key()
    then = datetime.fromtimestamp(centre.clock(), UTC) - ended - timedelta(hours=1)
    chain = x509.issue(centre.centre.authority.issuer, identity, key.public_key(), then, timedelta(hours=1))
    return read_leaf(x509.pem(chain), x509.key_pem(key))


async def why(centre: Running, leaf: Leaf, identity: Identity | None = None) -> str:
    with pytest.raises(Refusal) as caught:
        await recover(centre, leaf, identity)
    assert caught.value.status == 403
    return str(caught.value)


@pytest.mark.parametrize("days", [7.01, 20.0, 36.9])
async def test_back_within_the_window(centre: Running, days: float) -> None:
    leaf = await joined(centre)
    centre.clock.ahead = days * DAY
    new = await recover(centre, leaf)
    assert new.uri == leaf.uri
    assert new.key != leaf.key
    assert new.not_after > leaf.not_after


async def test_after_the_window_a_person_is_needed(centre: Running) -> None:
    leaf = await joined(centre)
    centre.clock.ahead = 37.1 * DAY
    said = await why(centre, leaf)
    assert "web-1 ended at" in said
    assert "within 30d" in said
    assert "culvert central token create --node web-1" in said
    assert "culvert agent join --force TOKEN" in said


async def test_what_is_recovered_works_and_can_end_again(centre: Running) -> None:
    leaf = await joined(centre)
    centre.clock.ahead = 8 * DAY
    again = await recover(centre, leaf)
    centre.clock.ahead = 16 * DAY
    assert (await recover(centre, again)).not_after > again.not_after


async def test_revoked_nodes_stay_out(centre: Running) -> None:
    leaf = await joined(centre)
    centre.clock.ahead = 8 * DAY
    spec = RevocationSpec(identity=str(WEB), reason="stolen")
    await centre.centre.apply([Revocation(Metadata(revocation_name(WEB)), spec)])
    assert "web-1" in await why(centre, leaf)


async def test_a_revoked_certificate_stays_out(centre: Running) -> None:
    leaf = await joined(centre)
    centre.clock.ahead = 8 * DAY
    serial = leaf.serial.lower().lstrip("0")
    spec = RevocationSpec(serials=(serial,), reason="seen on a pastebin")
    await centre.centre.apply([Revocation(Metadata(revocation_name(serial)), spec)])
    assert "is revoked (seen on a pastebin)" in await why(centre, leaf)


async def test_what_was_revoked_stays_out_for_as_long_as_it_could_come_back(centre: Running) -> None:
    """Revocations of certificates that ended are forgotten, but not while those are still good for this. Nor does
    trusting the node again make its old certificate good."""
    by_serial, by_node = await joined(centre), await joined(centre, "web-2", "10.0.0.2")
    serial = by_serial.serial.lower().lstrip("0")
    node = NodeIdentity(DOMAIN, "web-2")
    for target, spec in ((serial, RevocationSpec(serials=(serial,))), (node, RevocationSpec(identity=str(node)))):
        await centre.centre.apply([Revocation(Metadata(revocation_name(target)), spec)])
    revocation = centre.centre.state.objects[Key("Revocation", "", revocation_name(node))]
    assert isinstance(revocation, Revocation)
    rest = restored(revocation)
    assert rest is not None
    await centre.centre.apply([rest])
    for days in (9.0, 20.0, 36.9):
        centre.clock.ahead = days * DAY
        await centre.centre.forget_revocations()
        for leaf in (by_serial, by_node):
            assert "is revoked" in await why(centre, leaf)
    centre.clock.ahead = 39 * DAY
    assert len(await centre.centre.forget_revocations()) == 2
    for leaf in (by_serial, by_node):
        assert "token create" in await why(centre, leaf)


async def test_what_ended_before_its_node_was_revoked_stays_out_too(centre: Running) -> None:
    """It is on record for as long as it could come back, whatever is signed or made meanwhile."""
    leaf = await joined(centre)
    centre.clock.ahead = 17 * DAY
    await centre.operator().create_token(TokenRequest("web-2", 60.0))
    await centre.centre.apply([Revocation(Metadata("it"), RevocationSpec(identity=str(WEB)))])
    revocation = centre.centre.state.objects[Key("Revocation", "", "it")]
    assert isinstance(revocation, Revocation)
    rest = restored(revocation)
    assert rest is not None
    await centre.centre.apply([rest])
    assert "is revoked" in await why(centre, leaf)


async def test_deleted_nodes_stay_out_also_when_the_name_is_used_again(centre: Running) -> None:
    leaf = await joined(centre)
    centre.clock.ahead = 8 * DAY
    await centre.centre.delete([k for k in centre.centre.state.objects if k.kind == "Node"])
    assert "node web-1 was deleted" in await why(centre, leaf)
    # The machine that follows it is invited: the old one must not take its place.
    await centre.operator().create_token(TokenRequest("web-1", 60.0))
    assert "node web-1 was deleted" in await why(centre, leaf)
    await joined(centre)
    assert "node web-1 was deleted): have a token made" in await why(centre, leaf)


async def test_what_a_deleted_node_was_given_counts_no_more_though_the_name_is_used_again(centre: Running) -> None:
    """Neither its own certificate nor those for its workloads."""
    old = await joined(centre)
    await centre.centre.apply([workload("api", on="web-1", uid=2)])
    signed = await _by(centre, old).sign(x509.make_csr(x509.new_key(), API).decode())
    api = x509.serial(x509.load_chain(signed.chain.encode())[0])
    csr = x509.make_csr(x509.new_key(), WEB).decode()
    await centre.centre.delete([Key("Node", "", "web-1"), Key("Workload", "shop", "api")])
    await centre.operator().create_token(TokenRequest("web-1", 60.0))
    with pytest.raises(Refusal, match="node web-1 was deleted"):
        await _by(centre, old).renew(csr)
    new = await joined(centre)
    await _by(centre, new).renew(csr)
    with pytest.raises(Refusal, match="node web-1 was deleted"):
        await _by(centre, old).renew(csr)
    assert "node web-1 was deleted" in centre.centre.objection(API, api)
    before = centre.centre.state.objects[Key("Revocation", "", revocation_name(WEB))]
    await centre.centre.delete([Key("Node", "", "web-1")])
    after = centre.centre.state.objects[before.key]
    assert isinstance(before, Revocation)
    assert isinstance(after, Revocation)
    assert set(before.spec.serials) < set(after.spec.serials)
    assert not after.spec.identity


async def test_a_revoked_node_that_is_deleted_stays_revoked(centre: Running) -> None:
    await joined(centre)
    await centre.centre.apply([Revocation(Metadata(revocation_name(WEB)), RevocationSpec(identity=str(WEB)))])
    before = centre.centre.state.objects[Key("Revocation", "", revocation_name(WEB))]
    await centre.centre.delete([Key("Node", "", "web-1")])
    assert centre.centre.state.objects[before.key] == before


async def test_an_old_disk_is_no_second_node(centre: Running) -> None:
    """While the node itself is there, nobody recovers as it."""
    leaf = await joined(centre)
    centre.clock.ahead = 8 * DAY
    async with centre.node("web-1").session() as session:
        await session.send(Hello(VERSION, "test"))
        await session.receive()
        assert "is connected right now" in await why(centre, leaf)


async def test_only_nodes_recover_and_only_as_themselves(centre: Running) -> None:
    leaf = await joined(centre)
    centre.clock.ahead = 8 * DAY
    assert "a node renews its own" in await why(centre, leaf, NodeIdentity(DOMAIN, "web-2"))
    assert "a node renews its own" in await why(centre, leaf, WorkloadIdentity(DOMAIN, "shop", "web"))
    for other in (WorkloadIdentity(DOMAIN, "shop", "web"), OperatorIdentity(DOMAIN, "admin")):
        assert "is no node" in await why(centre, forged(centre, other, timedelta(hours=1)))


async def test_a_foreign_or_self_made_certificate_proves_nothing(centre: Running) -> None:
    await joined(centre)
    now = datetime.fromtimestamp(centre.clock(), UTC)
    root = x509.new_root(DOMAIN, now - timedelta(days=2), timedelta(days=9))
    issuer = x509.new_issuing(root, now - timedelta(days=2), timedelta(days=8))
    key = x509.new_key()
    chain = x509.issue(issuer, WEB, key.public_key(), now - timedelta(days=1), timedelta(hours=1))
    foreign = read_leaf(x509.pem(chain, issuer.cert), x509.key_pem(key))
    assert "was not issued here" in await why(centre, foreign)


async def test_the_key_must_be_the_certificates(centre: Running) -> None:
    leaf, other = await joined(centre), await joined(centre, "web-2", "10.0.0.2")
    centre.clock.ahead = 8 * DAY
    thief = Leaf(leaf.uri, leaf.chain, other.key, leaf.not_before, leaf.not_after, leaf.serial)
    assert "does not prove" in await why(centre, thief)


async def test_a_proof_from_another_connection_is_worth_nothing(centre: Running) -> None:
    leaf = await joined(centre)
    centre.clock.ahead = 8 * DAY
    _, csr = request(WEB)
    context = tls.context(x509.load_chain(centre.roots), None, server=False)
    host, port = centre.address.rsplit(":", 1)
    body = b""
    statuses = []
    for _ in range(2):  # the second time word for word what was good the first time
        async with await connect(host, int(port), context, expect=CentralIdentity) as channel:
            proof = possession.prove(x509.load_key(leaf.key), csr.decode(), channel.binding)
            body = body or msgspec.json.encode(RecoverRequest(leaf.chain.decode(), csr.decode(), proof))
            answer = await http.request(channel, "POST", "/v1/recover", host="centre", body=body)
            statuses.append(answer.status)
    assert statuses == [200, 403]
    assert "on this connection" in msgspec.json.decode(answer.body, type=Problem).message


@pytest.mark.parametrize("certificate", ["", "garbage", "-----BEGIN CERTIFICATE-----\n\n-----END CERTIFICATE-----\n"])
async def test_garbage(centre: Running, certificate: str) -> None:
    body = msgspec.json.encode(RecoverRequest(certificate, "csr", "proof"))
    answer = await centre.raw(None, "POST", "/v1/recover", body=body)
    assert answer.status == 403
    answer = await centre.raw(
        None, "POST", "/v1/recover", body=msgspec.json.encode(RecoverRequest("A" * 2**15, "", ""))
    )
    assert answer.status == 403


async def test_members_do_not_recover(centre: Running) -> None:
    """Whoever still has a certificate uses it."""
    answer = await centre.raw(centre.credentials(WEB), "POST", "/v1/recover", body=b"{}")
    assert answer.status == 403


async def test_the_operator_may_forbid_it(tmp_path: Path) -> None:
    async with running(tmp_path) as centre:
        authority = centre.centre.authority
        centre.centre.authority = replace(authority, lives=replace(authority.lives, recovery=timedelta(0)))
        leaf = await joined(centre)
        centre.clock.ahead = 7.01 * DAY
        assert "token create" in await why(centre, leaf)


async def test_an_ended_certificate_opens_nothing_else(centre: Running) -> None:
    await joined(centre)
    leaf = forged(centre, WEB, timedelta(hours=1))
    client = Client.over_tls(centre.address, DOMAIN, centre.roots, (leaf.chain, leaf.key))
    with pytest.raises(Exception, match="certificate"):
        await client.renew("csr")
    for method, path in (("POST", "/v1/renew"), ("POST", "/v1/sign"), ("GET", "/v1/session")):
        assert (await centre.raw(None, method, path)).status in (400, 403)


async def test_answered_for_many_at_once(centre: Running) -> None:
    """After a long power cut, all nodes come back together."""
    leaves = [await joined(centre, f"web-{i}", f"10.0.0.{i}") for i in range(1, 9)]
    centre.clock.ahead = 8 * DAY
    found: list[str] = []

    async def one(leaf: Leaf) -> None:
        found.append((await recover(centre, leaf)).uri)

    async with trio.open_nursery() as nursery:
        for leaf in leaves:
            nursery.start_soon(one, leaf)
    assert sorted(found) == sorted(leaf.uri for leaf in leaves)
