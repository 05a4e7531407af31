"""Tunnels that others open here: slow ones, hostile ones, ones of the wrong sort."""

import socket
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives import serialization
from msgspec.structs import force_setattr
from OpenSSL import SSL, crypto

from agent.snapshot import Snapshot
from agent.tunnel import arrivals as arrivals_module
from agent.tunnel import handshake
from agent.tunnel.arrivals import SHARE
from agent.tunnel.credentials import Credentials
from ca import tls, x509
from ca.identity import NodeIdentity, OperatorIdentity, WorkloadIdentity
from tests.agent.relay.rig import DB, WEB, authority, descriptors, leaf, receive_all, reset, soon, wire
from tests.agent.tunnel.node import Host, hosts, needs_marks
from tests.agent.views import mesh, node, workload

API = WorkloadIdentity("shop.example", "shop", "api")


async def come(host: Host, source: str = "127.0.0.1") -> trio.socket.SocketType:
    """A TCP connection to the host's tunnel port, and nothing more yet."""
    near, far = wire()
    host.arrivals.arrived(far, (source, 4711))
    return trio.socket.from_stdlib_socket(near)


async def speak(
    sock: trio.socket.SocketType, identity, *, server_name: str | None = DB.sni, alpn: bytes = b"h2", **more
):
    """Do a client's handshake with a certificate of `identity`; -> its machine."""
    credentials = leaf(identity) if identity else None
    roots = [more.get("root", authority()).cert]
    ctx = more.get("context") or tls.context(roots, more.get("credentials", credentials), server=False, alpn=alpn)
    machine = tls.Machine(ctx, server=False, server_name=server_name)
    while not machine.handshake():
        if flight := machine.take():
            await sock.send(flight)
        data = await sock.recv(65536)
        if not data:
            raise ConnectionError("hung up")
        machine.feed(data)
    await sock.send(machine.take())
    return machine


async def hung_up(sock: trio.socket.SocketType) -> None:
    """Wait for the other side to hang up, whatever it says before."""
    try:
        await receive_all(sock)
    except ConnectionResetError:
        pass
    sock.close()


async def until_refused(host: Host, count: int = 1) -> list[str]:
    await host.news.until(lambda: len(host.refusals) >= count)
    return [reason for _, reason in host.refusals]


# ---- noise


NOISE = {
    "plain HTTP": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "zeros": bytes(1000),
    "an alert": b"\x15\x03\x03\x00\x02\x02\x28",
    "a record of nothing": b"\x16\x03\x01\x00\x00" * 100,
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "a huge ClientHello": b"\x16\x03\x01\x40\x00\x01\x00\xff\xff\x03\x03" + bytes(2**17),
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
async def test_noise_is_refused_once_and_leaves_nothing(noise):
    async with hosts() as (_, db):
        before = descriptors()
        sock = await come(db)
        try:
            await sock.send(noise)
        except (BrokenPipeError, ConnectionResetError):
            pass
        sock.shutdown(socket.SHUT_WR)
        await hung_up(sock)
        reasons = await until_refused(db)
        assert len(reasons) == 1
        assert descriptors() == before
        assert not db.arrivals._shares


async def test_callers_that_hang_up_at_every_point():
    async with hosts() as (_, db):
        before = descriptors()
        hello = tls.Machine(tls.context([authority().cert], leaf(WEB), server=False, alpn=b"h2"), server=False)
        hello.handshake()
        flight = hello.take()
        for sent in (0, 1, 5, 50, len(flight) - 1, len(flight)):
            for end in ("eof", "reset"):
                sock = await come(db)
                await sock.send(flight[:sent])
                if end == "reset":
                    reset(sock)
                else:
                    sock.close()
        reasons = await until_refused(db, 12)
        assert len(reasons) == 12
        assert all("hung up" in r or "no local workload" in r or "chosen" in r for r in reasons), reasons
        assert descriptors() == before


async def test_dawdlers_are_bounded_and_others_unaffected(monkeypatch, autojump_clock):
    """Each sends a byte a second, and there are more of them than handshakes may be under way."""
    async with trio.open_nursery() as nursery:
        db = Host(nursery, DB)
        before = descriptors()
        crowd = [await come(db, "10.6.6.6") for _ in range(SHARE + 50)]
        assert len(db.refusals) == 50
        assert {peer for peer, _ in db.refusals} == {"10.6.6.6"}
        assert descriptors() - before == len(crowd) + SHARE
        began = trio.current_time()
        sock = await come(db, "10.1.1.1")
        await speak(sock, WEB)
        await soon(lambda: len(db.arrivals.links) == 1)
        assert trio.current_time() - began < handshake.TIMEOUT
        for _ in range(4):
            for dawdler in crowd[:SHARE]:
                await dawdler.send(b"\x16")
            await trio.sleep(1)
        await trio.sleep(handshake.TIMEOUT)
        assert len(db.refusals) == SHARE + 50
        assert {r for _, r in db.refusals[50:]} == {f"the TLS handshake did not end within {handshake.TIMEOUT:.0f} s"}
        assert not db.arrivals._shares
        for dawdler in (*crowd, sock):
            dawdler.close()
        db.close()
        nursery.cancel_scope.cancel()


async def test_more_than_may_shake_hands_at_once_wait_for_their_turn(monkeypatch):
    monkeypatch.setattr(arrivals_module, "SHAKING", 2)
    async with hosts() as (_, db):
        socks = [await come(db, f"10.0.0.{i}") for i in range(6)]
        async with trio.open_nursery() as nursery:
            for sock in socks:
                nursery.start_soon(speak, sock, WEB)
        await soon(lambda: len(db.arrivals.links) == 6)
        for sock in socks:
            sock.close()
        await soon(lambda: not db.arrivals.links)


async def test_cancelled_handshakes_close_their_sockets():
    before = descriptors()
    async with trio.open_nursery() as nursery:
        db = Host(nursery, DB)
        socks = [await come(db) for _ in range(5)]
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    for sock in socks:
        sock.close()
    assert descriptors() == before


# ---- wrong papers


@pytest.mark.parametrize(
    "identity", [NodeIdentity("shop.example", "n1"), OperatorIdentity("shop.example", "ann")], ids=["node", "operator"]
)
async def test_only_workloads_speak_here(identity):
    async with hosts() as (_, db):
        sock = await come(db)
        await speak(sock, identity)
        assert await until_refused(db) == [f"the peer proved to be {identity}: only workloads speak here"]
        await hung_up(sock)


async def test_no_certificate():
    async with hosts() as (_, db):
        sock = await come(db)
        await speak(sock, None)
        (reason,) = await until_refused(db)
        assert "certificate" in reason
        await hung_up(sock)


async def test_another_mesh():
    async with hosts() as (_, db):
        other = x509.new_root("shop.example", datetime.now(UTC), timedelta(days=1))
        key = x509.new_key()
        cert = x509.issue(other, WEB, key.public_key(), datetime.now(UTC), timedelta(hours=1))
        sock = await come(db)
        await speak(sock, WEB, credentials=(x509.pem(cert), x509.key_pem(key)))
        (reason,) = await until_refused(db)
        assert "leads to no root that is trusted here" in reason
        await hung_up(sock)


async def test_an_expired_certificate():
    async with hosts() as (_, db):
        key = x509.new_key()
        then = datetime.now(UTC) - timedelta(hours=3)
        root = x509.Issuer(authority().cert, authority().key)
        cert = x509.issue(root, WEB, key.public_key(), then, timedelta(hours=1))
        sock = await come(db)
        await speak(sock, WEB, credentials=(x509.pem(cert), x509.key_pem(key)))
        (reason,) = await until_refused(db)
        assert "ended at" in reason
        await hung_up(sock)


async def test_a_certificate_that_cannot_be_read_harms_nobody_else():
    async with hosts() as (_, db):
        der = x509.load_chain(leaf(WEB)[0])[0].public_bytes(serialization.Encoding.DER)
        # Of a version that there is not: OpenSSL reads it all the same.
        weird = crypto.load_certificate(crypto.FILETYPE_ASN1, der.replace(b"\xa0\3\2\1\2", b"\xa0\3\2\1\7"))
        ctx = tls.context([authority().cert], leaf(WEB), server=False, alpn=b"h2")
        assert SSL._lib.SSL_CTX_use_certificate(ctx._context, weird._x509) == 1
        for context in (ctx, None):
            sock = await come(db)
            await speak(sock, WEB, context=context)
            if context:
                assert "the peer's certificate cannot be read" in (await until_refused(db))[0]
                await hung_up(sock)
            else:
                await soon(lambda: bool(db.arrivals.links))
                sock.close()


async def test_another_protocol():
    async with hosts() as (_, db):
        sock = await come(db)
        with pytest.raises(tls.TlsError):
            await speak(sock, WEB, alpn=b"http/1.1")
        (reason,) = await until_refused(db)
        assert reason.startswith("TLS:")
        await hung_up(sock)


@pytest.mark.parametrize("name", [API.sni, "web.shop.mesh", "x" * 200, DB.sni.upper()])
async def test_a_name_that_nobody_has_here(name):
    async with hosts() as (_, db):
        sock = await come(db)
        with pytest.raises((tls.TlsError, ConnectionError)):
            await speak(sock, WEB, server_name=name)
        assert await until_refused(db) == [f"no local workload is meant by server name {name}"]
        await hung_up(sock)


# ---- a certificate that is on its way


@pytest.mark.parametrize("name", [API.sni, None], ids=["by name", "by address"])
async def test_who_comes_before_the_certificate_waits_for_it(name):
    """The view says that API is enrolled here, its certificate is being signed."""
    async with hosts() as (_, db):
        known = view(workload("api"))
        if name is None:  # of a caller without a server name, the address dialled says who is meant
            known = replace(known, by_address=known.by_address.set("127.0.0.1", frozenset({workload("api").key})))
        db.credentials._view = lambda: known
        done = trio.Event()
        sock = await come(db)

        async def call() -> None:
            await speak(sock, WEB, server_name=name)
            done.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await soon(lambda: API in db.credentials._awaited)
            assert not done.is_set()
            assert db.refusals == []
            db.credentials.put(str(API), *leaf(API))
            await done.wait()
        await soon(lambda: [link.terms.local for link in db.links] == [API])
        assert db.credentials._awaited == {}
        sock.close()


async def test_a_certificate_that_does_not_come_is_not_awaited_for_ever(monkeypatch):
    monkeypatch.setattr(handshake, "PATIENCE", 0.05)
    async with hosts() as (_, db):
        db.credentials._view = lambda: view(workload("api"))
        sock = await come(db)
        with pytest.raises((tls.TlsError, ConnectionError)):
            await speak(sock, WEB, server_name=API.sni)
        assert await until_refused(db) == [f"there is no certificate yet for {API}"]
        await hung_up(sock)


# ---- without a server name: the address tells


def view(*workloads) -> Snapshot:
    return Snapshot("n1").apply(1, [mesh(), node("n1"), *workloads], ())


@pytest.mark.parametrize(
    ("workloads", "meant"),
    [
        ((workload("db"),), DB),
        ((workload("db"), workload("api")), None),
        ((workload("db", enrolled=False),), None),
        ((workload("db", "n2"),), None),
        ((), None),
    ],
)
def test_whom_an_address_means(workloads, meant):
    credentials = Credentials(lambda: view(*workloads))
    assert credentials._at("10.0.0.1") == meant


def test_two_workloads_of_one_identity_are_no_doubt():
    first, second = workload("one", ports=(80,)), workload("two", ports=(81,))
    force_setattr(second.spec, "service_account", "one")
    assert Credentials(lambda: view(first, second))._at("10.0.0.1").service_account == "one"


async def test_without_a_name_and_with_nobody_at_the_address():
    async with hosts() as (_, db):
        sock = await come(db)
        with pytest.raises((tls.TlsError, ConnectionError)):
            await speak(sock, WEB, server_name=None)
        assert await until_refused(db) == ["no local workload is meant by address 127.0.0.1 without a server name"]
        await hung_up(sock)


# ---- after the handshake


async def test_a_tunnel_that_says_nothing_more_is_known_and_forgotten_with_its_end():
    async with hosts() as (_, db):
        sock = await come(db)
        await speak(sock, WEB)
        await soon(lambda: len(db.arrivals.links) == 1)
        (link,) = db.arrivals.links
        assert (link.local, link.peer, link.describe().state) == (DB, WEB, "open")
        sock.close()
        await soon(lambda: not db.arrivals.links)


@needs_marks
async def test_frames_in_the_very_segment_of_the_last_flight():
    """What came decryptable with the handshake is read, though the socket never becomes readable again."""
    async with hosts() as (web, db):
        wanted = web.want(db.listen())
        await web.news.until(lambda: wanted.status == 200)
