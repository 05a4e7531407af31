"""Port 15008 and the capture ports as somebody sees them who wants in: every refusal, beside what is let in."""

import socket
import struct
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import trio

from agent.lab.mesh import TRUST_DOMAIN
from agent.lab.place import Place
from agent.lab.process import eventually
from ca import x509
from ca.identity import Identity, NodeIdentity, OperatorIdentity, WorkloadIdentity
from tests.netns import traffic
from tests.netns.town import STRANGER, Town
from tests.netns.tunnels import NoTunnel, impostor, open_tunnel


def identity(name: str, domain: str = TRUST_DOMAIN) -> WorkloadIdentity:
    return WorkloadIdentity(domain, "shop", name)


def leaf_of(town: Town, node: str, name: str) -> bytes:
    """Key and chain of a workload, stolen from its node's disk."""
    for file in (town.node(node).directory / "state" / "leaves").iterdir():
        credentials = file.read_bytes()
        if x509.identity_of(x509.load_chain(credentials)[0]) == identity(name):
            return credentials
    raise AssertionError(f"{node} holds no leaf of {name}")


def self_made(who: Identity, *, begins: float = -60, lasts: float = 3600) -> bytes:
    """Key and chain of somebody who has an authority of his own."""
    root = x509.new_root(who.trust_domain, datetime.now(UTC), timedelta(days=1))
    issuing = x509.new_issuing(root, datetime.now(UTC), timedelta(days=1))
    key = x509.new_key()
    now = datetime.now(UTC) + timedelta(seconds=begins)
    leaf = x509.issue(issuing, who, key.public_key(), now, timedelta(seconds=lasts))
    return x509.key_pem(key) + x509.pem(leaf, issuing.cert)


def far(town: Town) -> Place:
    return Place(town.far.namespace)


@pytest.fixture
async def db_serves(town: Town) -> AsyncIterator[traffic.Served]:
    db = town["db"]
    async with traffic.serving(db.server, db.address, db.port, traffic.echo) as served:
        yield served


async def test_the_right_certificate_opens_a_tunnel(town: Town, db_serves: traffic.Served) -> None:
    """The control for all that follows: this differs from a refused attempt in one thing each."""
    web = leaf_of(town, "one", "web")
    async with open_tunnel(far(town), town.two.address, web, identity("db").sni) as tunnel:
        number, status = await tunnel.connect(f"{town.two.address}:{town['db'].port}")
        assert status == 200
        assert await tunnel.exchange(number, b"let in") == b"let in"


@pytest.mark.parametrize(
    "who",
    [
        "no certificate",
        "a node",
        "an operator",
        "a workload of another authority",
        "a workload of another trust domain",
        "a node of another authority",
    ],
)
async def test_who_is_no_workload_of_this_mesh_gets_no_tunnel(town: Town, who: str, db_serves: traffic.Served) -> None:
    credentials = {
        "no certificate": lambda: None,
        "a node": lambda: (town.node("one").directory / "state" / "node.pem").read_bytes(),
        "an operator": lambda: _operator(town),
        "a workload of another authority": lambda: self_made(identity("web")),
        "a workload of another trust domain": lambda: self_made(identity("web", "other.example")),
        "a node of another authority": lambda: self_made(NodeIdentity(TRUST_DOMAIN, "one")),
    }[who]()
    with pytest.raises(NoTunnel):
        async with open_tunnel(far(town), town.two.address, credentials, identity("db").sni):
            pass
    assert db_serves.peers == []


def _operator(town: Town) -> bytes:
    from ca.credential import load

    credential = load(town.mesh.directory / "operator.json")
    assert isinstance(x509.identity_of(x509.load_chain(credential.chain.encode())[0]), OperatorIdentity)
    return (credential.key + credential.chain).encode()


@pytest.mark.parametrize(
    "name", [None, "web.example", identity("web").sni, identity("idle").sni, "x" * 52 + ".id.culvert"]
)
async def test_a_name_that_no_local_identity_has_gets_no_tunnel(town: Town, name: str | None) -> None:
    """Without a name the address would have to tell, and several identities share it."""
    with pytest.raises(NoTunnel):
        async with open_tunnel(far(town), town.two.address, leaf_of(town, "one", "web"), name):
            pass


async def test_a_tunnel_leads_only_to_the_identity_it_is_for(town: Town, db_serves: traffic.Served) -> None:
    two, web = town.two.address, leaf_of(town, "one", "web")
    wrong = {
        f"{two}:{town['mail'].port}": {400},
        f"{town['store'].address}:{town['store'].port}": {400},
        f"{two}:{town['idle'].port}": {400},
        f"{town.one.address}:{town['web'].port}": {400},
        f"{town.far.address}:80": {400},
        f"127.0.0.1:{town['db'].port}": {400, 503},
        f"{two}:22": {400, 503},
        **{f"{two}:{port}": {400, 503} for port in (15000, 15001, 15006, 15008, 15012, 15020, 15021, 15053, 15100)},
        **{f"127.0.0.1:{port}": {400, 503} for port in (15006, 15008, 15020, 15100)},
        f"{two}": {400},
        f"{two}:99999": {400},
        "nobody:80": {400},
    }
    async with open_tunnel(far(town), two, web, identity("db").sni) as tunnel:
        for authority, statuses in wrong.items():
            _, status = await tunnel.connect(authority)
            assert status in statuses, authority
        _, status = await tunnel.ask(
            [(":method", "GET"), (":scheme", "https"), (":authority", f"{two}:{town['db'].port}"), (":path", "/")]
        )
        assert status == 400
        # All those refusals have not harmed the tunnel.
        number, status = await tunnel.connect(f"{two}:{town['db'].port}")
        assert status == 200
        assert await tunnel.exchange(number, b"still") == b"still"
    assert len(db_serves.peers) == 1


async def test_garbage_on_the_tunnel_port_harms_nobody(town: Town, db_serves: traffic.Served) -> None:
    two = town.two.address
    for text in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(70000), bytes(range(256)) * 40):
        with trio.move_on_after(3):
            try:
                await traffic.ask(far(town), two, 15008, text, seconds=5)
            except traffic.ENDED:
                continue
    assert await traffic.ask(town["web"].place, two, town["db"].port) == b"ping"


async def test_our_client_leaves_when_somebody_else_answers(town: Town) -> None:
    """`ghost` is registered on a node whose tunnel port somebody holds with the certificate of its neighbour `evil`."""
    three = await town.mesh.add("three", town.far)
    workload = (
        "apiVersion: culvert/v1\nkind: Workload\n"
        "metadata: {{namespace: shop, name: {0}, labels: {{mesh: 'on'}}}}\n"
        "spec: {{node: three, serviceAccount: {0}, ports: [{1}], match: {{uid: {2}}}}}\n"
    )
    try:
        await town.mesh.apply(workload.format("ghost", 8401, 64401) + "---\n" + workload.format("evil", 8402, 64402))
        leaves = {name: leaf_of(town, "three", name) for name in ("evil", "ghost")}
        assert three.process is not None
        await three.process.end(grace=10)
        web = town["web"].place
        async with impostor(far(town), town.far.address, leaves["evil"]) as heard:
            assert await traffic.refused(web, town.far.address, 8401, seconds=15)
            assert heard == []
        record = await town.record("one", destination__workload="shop/ghost", state="closed")
        assert record["verdict"] != "allowed"
        assert "shop/sa/evil" in record["reason"]
        # The control: with the right certificate the client goes on and speaks HTTP/2.
        async with impostor(far(town), town.far.address, leaves["ghost"]) as heard:
            stream = await traffic.dial(web, town.far.address, 8401)
            assert await eventually(lambda: bool(heard), 15)
            await trio.aclose_forcefully(stream)
            assert b"".join(heard).startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    finally:
        with trio.CancelScope(shield=True):
            await town.mesh.operator("delete", "workload", "shop/ghost", "shop/evil")


async def test_a_port_that_a_workload_has_just_had_makes_nobody_that_workload(town: Town) -> None:
    """The kernel remembers for seconds where a connection went that the server reset, whoever dials next."""
    db = town["db"]

    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def ask(place: Place) -> None:
        with trio.socket.from_stdlib_socket(place.socket(socket.AF_INET)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            await sock.bind((town.one.address, 40001))
            with trio.fail_after(2):
                await sock.connect((db.address, db.port))
            await sock.send(b"ping")
            with pytest.raises(ConnectionResetError):
                await sock.recv(100)

    async with traffic.serving(db.server, db.address, db.port, reset) as served:
        for _ in range(2):
            await ask(town["web"].place)
        with pytest.raises(trio.TooSlowError):
            await ask(Place(town.one.namespace, STRANGER))
        assert len(served.peers) == 2
