"""Who is revoked and calls the centre all the same, over real TLS."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from ca import x509
from ca.client import Client, ClientError, Refusal
from ca.contract import VERSION, Hello, TokenRequest
from ca.identity import Identity, NodeIdentity, OperatorIdentity, WorkloadIdentity
from ca.resources.metadata import Metadata
from ca.resources.revocation import Revocation, RevocationSpec
from ca.revoking import restored
from tests.ca.objects import node, workload
from tests.ca.running import DOMAIN, Running, running

A, ADMIN, WEB = NodeIdentity(DOMAIN, "a"), OperatorIdentity(DOMAIN, "admin"), WorkloadIdentity(DOMAIN, "shop", "web")


@pytest.fixture
async def centre(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "centre") as made:
        await made.centre.apply([node("a"), workload("web")])
        yield made


def _revoke(identity: Identity | str = "", *serials: str) -> Revocation:
    return Revocation(Metadata("it"), RevocationSpec(str(identity), serials, "stolen"))


def _csr(who: Identity) -> str:
    return x509.make_csr(x509.new_key(), who).decode()


def _client(centre: Running, who: Identity) -> tuple[Client, str]:
    chain, key = centre.credentials(who)
    client = Client.over_tls(centre.address, DOMAIN, centre.roots, (chain, key))
    return client, x509.serial(x509.load_chain(chain)[0])


@pytest.mark.parametrize("by_serial", [False, True])
async def test_a_node_is_refused_everything(centre: Running, by_serial: bool) -> None:
    client, serial = _client(centre, A)
    await client.sign(_csr(WEB))
    await centre.centre.apply([_revoke("", serial) if by_serial else _revoke(A)])
    said = rf"{'certificate ' + serial if by_serial else A} is revoked \(stolen\)"
    for call in (client.sign(_csr(WEB)), client.renew(_csr(A))):
        with pytest.raises(Refusal, match=said):
            await call
    with pytest.raises(Refusal, match=said):
        async with client.session():
            pass
    if by_serial:
        await _client(centre, A)[0].sign(_csr(WEB))  # the same node with another certificate


@pytest.mark.parametrize("by_serial", [False, True])
async def test_a_session_is_cut_before_it_tells_anything_more(centre: Running, by_serial: bool) -> None:
    client, serial = _client(centre, A)
    async with client.session() as session:
        await session.send(Hello(VERSION, "t"))
        for _ in range(3):
            await session.receive()
        await centre.centre.apply([_revoke("", serial) if by_serial else _revoke(A)])
        with trio.fail_after(1), pytest.raises(ClientError, match="is over"):
            await session.receive()


async def test_an_operator_is_refused(centre: Running) -> None:
    client, _ = _client(centre, ADMIN)
    await client.status()
    await centre.centre.apply([_revoke(ADMIN)])
    with pytest.raises(Refusal, match=r"operator/admin is revoked \(stolen\)"):
        await client.status()
    with pytest.raises(Refusal, match="culvert ca unrevoke operator admin"):
        await Client.at_socket(centre.settings.socket).sign_operator(_csr(ADMIN))


async def test_no_token_leads_back_into_the_mesh_before_the_node_is_trusted_again(centre: Running) -> None:
    operator = centre.operator()
    token = (await operator.create_token(TokenRequest("a"))).token
    await centre.join(token, "a")
    token = (await operator.create_token(TokenRequest("a"))).token
    await centre.centre.apply([_revoke(A)])
    with pytest.raises(Refusal, match="knows no such token"):
        await centre.join(token, "a")
    with pytest.raises(Refusal, match=r"node/a is revoked \(stolen\): culvert ca unrevoke node a comes first"):
        await operator.create_token(TokenRequest("a"))
    # Trusted again, but not what was issued before.
    rest = restored(next(iter(centre.centre.state.revoked.objects.values())))
    assert rest is not None
    assert len(rest.spec.serials) == 1
    await centre.centre.apply([rest])
    with pytest.raises(Refusal, match="knows no such token"):
        await centre.join(token, "a")
    await centre.join((await operator.create_token(TokenRequest("a"))).token, "a")


async def test_an_identity_gets_no_certificate_and_takes_its_old_ones_with_it(centre: Running) -> None:
    client, _ = _client(centre, A)
    (leaf, *_) = x509.load_chain((await client.sign(_csr(WEB))).chain.encode())
    await centre.centre.apply([_revoke(WEB)])
    with pytest.raises(Refusal, match=r"sa/web is revoked \(stolen\)"):
        await client.sign(_csr(WEB))
    assert centre.centre.state.revoked.serial(x509.serial(leaf))


async def test_what_is_signed_while_its_node_is_revoked_is_not_handed_out_or_is_revoked_too(
    centre: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signature is on record, its answer is not out yet, and the node is revoked in between."""
    client, _ = _client(centre, A)
    signed, go_on = trio.Event(), trio.Event()
    real = trio.to_thread.run_sync

    async def slow(sign: object, *rest: object, **more: object) -> object:
        done = await real(sign, *rest, **more)  # type: ignore[arg-type]
        if getattr(sign, "__qualname__", "").startswith("Centre.sign."):
            signed.set()
            await go_on.wait()
        return done

    monkeypatch.setattr(trio.to_thread, "run_sync", slow)
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(Refusal, match="node/a is revoked"):
                await client.sign(_csr(WEB))

        nursery.start_soon(ask)
        await signed.wait()
        await centre.centre.apply([_revoke(A)])
        go_on.set()
    assert len(next(iter(centre.centre.state.revoked.objects.values())).spec.serials) == 1
