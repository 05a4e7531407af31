import contextlib
import socket
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
import trio

from ca import endpoint, http, server, tls, x509
from ca.channel import ChannelError, connect
from ca.client import Client, ClientError, Refusal
from ca.contract import (
    VERSION,
    Answer,
    ApplyRequest,
    DeleteRequest,
    FoundRequest,
    JoinRequest,
    LabelRequest,
    Problem,
    Report,
    ResourceName,
    TokenRequest,
)
from ca.duration import Duration
from ca.http import HttpError
from ca.identity import CentralIdentity, Identity, NodeIdentity, OperatorIdentity, WorkloadIdentity
from ca.resources.kinds import encode
from ca.resources.metadata import Key, Metadata
from ca.resources.node import Discovery, Node, NodeSpec
from ca.resources.revocation import Revocation, RevocationSpec, revocation_name
from ca.resources.workload import Match, Origin, WorkloadSpec
from ca.tokens import JoinToken
from tests.ca.objects import node, workload
from tests.ca.replica import Replica
from tests.ca.running import DOMAIN, Clock, Running, running

WEB = WorkloadIdentity(DOMAIN, "shop", "web")
CLASSES: dict[str, Identity | None] = {
    "nobody": None,
    "workload": WEB,
    "node": NodeIdentity(DOMAIN, "a"),
    "operator": OperatorIdentity(DOMAIN, "admin"),
    "central": CentralIdentity(DOMAIN, "other"),
}
MAY = {
    ("POST", "/v1/join"): {"nobody"},
    ("POST", "/v1/renew"): {"node"},
    ("POST", "/v1/sign"): {"node"},
    ("POST", "/v1/found"): {"node"},
    ("POST", "/v1/operators"): set(),
    ("POST", "/v1/tokens"): {"operator"},
    ("POST", "/v1/apply"): {"operator"},
    ("POST", "/v1/delete"): {"operator"},
    ("POST", "/v1/label"): {"operator"},
    ("POST", "/v1/ask"): {"operator"},
    ("GET", "/v1/resources"): {"operator"},
    ("GET", "/v1/status"): {"operator"},
    ("GET", "/v1/trust"): {"operator"},
    ("GET", "/v1/session"): {"node"},
}


@pytest.fixture
async def centre(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path / "centre") as made:
        await made.centre.apply([node("a", "10.0.0.1"), node("b", "10.0.0.2"), workload("web", uid=1)])
        yield made


def problem(body: bytes) -> Problem:
    return msgspec.json.decode(body, type=Problem)


async def test_each_call_is_for_its_class_only(centre: Running) -> None:
    for name, identity in CLASSES.items():
        credentials = centre.credentials(identity) if identity else None
        for (method, path), may in MAY.items():
            response = await centre.raw(credentials, method, path, body=b"{}" if method == "POST" else b"")
            said = (name, method, path, response.status, response.body)
            if name in may:
                assert response.status in (200, 400, 426), said
            else:
                assert response.status == 403, said
                assert "the caller is" in problem(response.body).message
    assert centre.centre.state.revision == 2


async def test_what_is_no_call(centre: Running) -> None:
    operator = centre.credentials(OperatorIdentity(DOMAIN, "admin"))
    missing = await centre.raw(operator, "GET", "/v1/statsu")
    assert (missing.status, problem(missing.body).message) == (404, "there is no /v1/statsu; did you mean /v1/status?")
    assert (await centre.raw(operator, "POST", "/v1/status")).status == 405
    wrong = await centre.raw(operator, "POST", "/v1/apply", body=b'{"resources": 5}')
    assert (wrong.status, problem(wrong.body).kind) == (400, "invalid")
    bad = await centre.raw(operator, "POST", "/v1/apply", body=b'{"resources": [{"kind": "Workload"}, {"kind": "X"}]}')
    assert (bad.status, problem(bad.body).message.splitlines()[0][:26]) == (409, "object 1 of the request: O")
    assert len(problem(bad.body).message.splitlines()) == 2
    deep = await centre.raw(operator, "POST", "/v1/apply", body=b"[" * 100_000)
    assert deep.status == 400


async def test_versions(centre: Running) -> None:
    operator = centre.credentials(OperatorIdentity(DOMAIN, "admin"))
    for version in ("1.0", "1.1", "1.99"):
        response = await centre.raw(operator, "GET", "/v1/status", headers=[("culvert-version", version)])
        assert (response.status, response.header("culvert-version")) == (200, VERSION)
    label = b'{"resource": {"kind": "Node", "name": "a", "newer": 1}, "labels": {"x": "y"}, "newer": []}'
    assert (await centre.raw(operator, "POST", "/v1/label", body=label)).status == 200
    response = await centre.raw(operator, "GET", "/v1/status", headers=[("culvert-version", "2.0")])
    assert problem(response.body) == Problem(
        f"contract version '2.0' does not fit ours, {VERSION}: upgrade the older side", "version"
    )


async def test_every_answer_tells_the_time(centre: Running) -> None:
    centre.clock.ahead = 3600.0
    heard: list[float] = []

    def timed(now: float, sent: float, received: float) -> None:
        assert sent <= received
        heard.append(now - time.time())

    credentials = centre.credentials(NodeIdentity(DOMAIN, "a"))
    for given in (credentials, None):
        client = Client.over_tls(centre.address, DOMAIN, centre.roots, given, timed=timed)
        assert (await client.time()).time == pytest.approx(centre.clock(), abs=5)
        with pytest.raises(Refusal):
            await client.status()
    assert len(heard) == 4
    assert heard == pytest.approx([3600.0] * 4, abs=5)
    await Client.asking_time(centre.address, DOMAIN, centre.roots, timed).time()
    assert len(heard) == 5


async def test_the_time_is_not_asked_of_just_anybody(centre: Running, tmp_path: Path) -> None:
    """The dates of the centre's certificate are forgiven there, and nothing else."""
    async with running(tmp_path / "other") as other:
        client = Client.asking_time(centre.address, DOMAIN, other.roots, lambda *_: None)
        with pytest.raises(ClientError, match="no root that is trusted"):
            await client.time()


async def test_a_token_makes_a_node_once(centre: Running) -> None:
    operator = centre.operator()
    token = (await operator.create_token(TokenRequest("web-1"))).token
    assert centre.centre.state.node("web-1") == node("web-1")
    joined = await centre.join(token, "web-1", "10.0.0.7")
    assert (joined.node, joined.trust_domain, joined.roots) == ("web-1", DOMAIN, centre.centre.roots())
    assert x509.identity_of(x509.load_chain(joined.chain.encode())[0]) == NodeIdentity(DOMAIN, "web-1")
    assert centre.centre.state.node("web-1") == node("web-1", "10.0.0.7")
    with pytest.raises(Refusal, match="the token was used at"):
        await centre.join(token, "web-1", "10.0.0.8")
    assert centre.centre.state.node("web-1") == node("web-1", "10.0.0.7")


async def test_a_token_that_is_refused_stays_good(centre: Running) -> None:
    token = (await centre.operator().create_token(TokenRequest("web-1"))).token
    with pytest.raises(Refusal, match=r"is for spiffe://shop\.example/node/a, but the token is for node web-1"):
        await centre.join(token, "a", "10.0.0.7")
    with pytest.raises(Refusal, match="is no address that another node can reach"):
        await centre.join(token, "web-1", "127.0.0.1")
    with pytest.raises(Refusal, match=r"tunnel port 15008 at 10\.0\.0\.1 is already that of node a"):
        await centre.join(token, "web-1", "10.0.0.1")
    await centre.join(token, "web-1", "10.0.0.7")


@pytest.mark.parametrize("revoked", [False, True])
async def test_a_token_goes_with_its_node(centre: Running, revoked: bool) -> None:
    """And does not come back with the name."""
    operator = centre.operator()
    old = (await operator.create_token(TokenRequest("web-1", 60.0))).token
    other = (await operator.create_token(TokenRequest("web-2", 60.0))).token
    key = Key("Node", "", "web-1")
    if revoked:
        identity = NodeIdentity(DOMAIN, "web-1")
        revocation = Revocation(Metadata(revocation_name(identity)), RevocationSpec(str(identity)))
        await centre.centre.apply([revocation], dry_run=True)
        assert [t.node for t in centre.centre.authority.store.tokens("web-1")] == ["web-1"]
        await centre.centre.apply([revocation])
        key = revocation.key
    await centre.centre.delete([key])
    new = (await operator.create_token(TokenRequest("web-1", 60.0))).token
    with pytest.raises(Refusal, match="knows no such token"):
        await centre.join(old, "web-1", "10.0.0.3")
    await centre.join(new, "web-1", "10.0.0.3")
    await centre.join(other, "web-2", "10.0.0.4")


async def test_tokens_that_prove_nothing(tmp_path: Path) -> None:
    clock = Clock()
    async with running(tmp_path / "one", clock) as centre, running(tmp_path / "two") as other:
        operator = centre.operator()
        expired = (await operator.create_token(TokenRequest("web-1", ttl=60))).token
        clock.ahead = 61
        with pytest.raises(Refusal, match="the token expired at"):
            await centre.join(expired, "web-1")
        good = JoinToken.parse((await operator.create_token(TokenRequest("web-1"))).token)
        forged = JoinToken(good.address, good.root, good.node, bytes(32))
        with pytest.raises(Refusal, match="knows no such token for node web-1"):
            await centre.join(str(forged), "web-1")
        renamed = JoinToken(good.address, good.root, "web-2", good.secret)
        with pytest.raises(Refusal, match="knows no such token for node web-2"):
            await centre.join(str(renamed), "web-2")
        foreign = JoinToken.parse((await other.operator().create_token(TokenRequest("web-1"))).token)
        with pytest.raises(ClientError, match="no root that is trusted"):
            await centre.join(str(JoinToken(good.address, foreign.root, foreign.node, foreign.secret)), "web-1")
        csr = x509.make_csr(x509.new_key(), NodeIdentity(DOMAIN, "web-1")).decode()
        with pytest.raises(Refusal, match="another mesh"):
            await Client.joining(good).join(JoinRequest(str(foreign), csr, "10.0.0.9"))
        for ttl in (0.0, -1.0, 1e9, 1e300):
            with pytest.raises(Refusal, match="a token cannot live for"):
                await operator.create_token(TokenRequest("web-1", ttl=ttl))
        with pytest.raises(Refusal, match="is not a name"):
            await operator.create_token(TokenRequest("Web_1"))
        await centre.join(str(good), "web-1")


async def test_one_token_in_many_hands(centre: Running) -> None:
    token = (await centre.operator().create_token(TokenRequest("web-1"))).token
    joined: list[int] = []

    async def try_it(i: int) -> None:
        with contextlib.suppress(Refusal):
            await centre.join(token, "web-1", f"10.0.1.{i}")
            joined.append(i)

    async with trio.open_nursery() as nursery:
        for i in range(1, 9):
            nursery.start_soon(try_it, i)
    assert len(joined) == 1
    assert centre.centre.state.node("web-1") == node("web-1", f"10.0.1.{joined[0]}")


async def test_a_node_gets_certificates_for_what_it_hosts(centre: Running) -> None:
    a, b, key = centre.node("a"), centre.node("b"), x509.new_key()
    signed = await a.sign(x509.make_csr(key, WEB).decode())
    assert x509.identity_of(x509.load_chain(signed.chain.encode())[0]) == WEB
    assert signed.roots == centre.centre.roots()
    refused = {
        "no registered workload of node b has the identity": (b, WEB),
        "no registered workload of node a has": (a, WorkloadIdentity(DOMAIN, "bank", "web")),
        "is no workload of shop.example": (a, NodeIdentity(DOMAIN, "a")),
        "is no workload of shop.example:": (a, WorkloadIdentity("other.example", "shop", "web")),
    }
    for why, (client, identity) in refused.items():
        with pytest.raises(Refusal, match=why):
            await client.sign(x509.make_csr(key, identity).decode())
    await centre.centre.delete([Key("Workload", "shop", "web")])
    with pytest.raises(Refusal, match="no registered workload of node a"):
        await a.sign(x509.make_csr(key, WEB).decode())


async def test_a_node_registers_what_its_token_lets_it(centre: Running) -> None:
    found = msgspec.structs.replace(
        workload("db", "c"), spec=WorkloadSpec("c", "db", match=Match(uid=5), found=Origin("files"))
    )
    request = FoundRequest([msgspec.Raw(encode(found))], ["files"])
    operator = centre.operator()
    token = await operator.create_token(TokenRequest("c", discovery=Discovery(("shop",), ("db",))))
    await centre.join(token.token, "c", "10.0.0.3")
    assert (await centre.node("c").found(request)).refused == []
    assert centre.centre.state.objects[found.key] == found
    (other,) = (await centre.node("a").found(request)).refused
    assert "is no workload that node a found" in other.why
    with pytest.raises(Refusal, match="no part of the mesh"):
        await centre.node("z").found(request)
    await operator.create_token(TokenRequest("c"))  # says nothing of what it may
    assert (await centre.node("c").found(request)).refused == []
    narrower = msgspec.Raw(encode(Node(metadata=Metadata("c"), spec=NodeSpec(discovery=Discovery()))))
    await operator.apply(ApplyRequest([narrower]))
    assert found.key not in centre.centre.state.objects
    (refused,) = (await centre.node("c").found(request)).refused
    assert "namespace shop is not among those the node may use" in refused.why
    await operator.create_token(TokenRequest("c", discovery=Discovery(("shop",))))
    assert (await centre.node("c").found(request)).refused == []
    await operator.delete(DeleteRequest([ResourceName("Node", "c")]))
    assert found.key not in centre.centre.state.objects


async def test_a_node_that_finds_millions_is_not_answered_one_by_one(centre: Running) -> None:
    credentials = centre.credentials(NodeIdentity(DOMAIN, "a"))
    for field in ("workloads", "gone", "sources"):
        found = {"workloads": [], field: [{"kind": "", "name": ""} if field == "gone" else ""] * 20_001}
        response = await centre.raw(credentials, "POST", "/v1/found", body=msgspec.json.encode(found))
        assert (response.status, len(response.body) < 500) == (400, True), field
        assert field in problem(response.body).message


async def test_a_node_renews_itself_only(centre: Running) -> None:
    a = centre.node("a")
    renewed = await a.renew(x509.make_csr(x509.new_key(), NodeIdentity(DOMAIN, "a")).decode())
    assert x509.identity_of(x509.load_chain(renewed.chain.encode())[0]) == NodeIdentity(DOMAIN, "a")
    for identity in (NodeIdentity(DOMAIN, "b"), OperatorIdentity(DOMAIN, "admin"), WEB):
        with pytest.raises(Refusal, match="a node renews its own certificate only"):
            await a.renew(x509.make_csr(x509.new_key(), identity).decode())
    with pytest.raises(Refusal, match="this is no signing request"):
        await a.renew("nonsense")


async def test_a_deleted_node_opens_no_door(centre: Running) -> None:
    b = centre.node("b")
    await centre.operator().delete(DeleteRequest([ResourceName("Node", "b")]))
    with pytest.raises(Refusal, match="node b is no part of the mesh any more"):
        await b.renew(x509.make_csr(x509.new_key(), NodeIdentity(DOMAIN, "b")).decode())
    with pytest.raises(Refusal, match="no part of the mesh any more"):
        await b.sign(x509.make_csr(x509.new_key(), WEB).decode())
    with pytest.raises(Refusal, match="a session is for a node of this mesh"):
        async with b.session():
            pass


async def test_a_foreign_mesh_is_nobody(centre: Running, tmp_path: Path) -> None:
    async with running(tmp_path / "other") as other:
        theirs = other.credentials(OperatorIdentity(DOMAIN, "admin"))
        with pytest.raises(ClientError, match="certificate"):
            await Client.over_tls(centre.address, DOMAIN, centre.roots, theirs).status()
        ours = centre.credentials(OperatorIdentity(DOMAIN, "admin"))
        with pytest.raises(ClientError, match="no root that is trusted"):
            await Client.over_tls(centre.address, DOMAIN, other.roots, ours).status()


async def test_a_session_over_tls_and_across_a_restart(tmp_path: Path) -> None:
    replica = Replica()
    async with running(tmp_path / "centre") as centre:
        await centre.centre.apply([node("a"), workload("web", uid=1)])
        async with centre.node("a").session() as session, trio.open_nursery() as nursery:
            await session.send(replica.hello())
            nursery.start_soon(replica.follow, session)
            await replica.at(2)
            await centre.operator().label(LabelRequest(ResourceName("Workload", "web", "shop"), {"mesh": "on"}))
            await replica.at(3)
            await session.send(Report(3))
            nursery.cancel_scope.cancel()
        assert replica.objects[Key("Workload", "shop", "web")] == workload("web", labels={"mesh": "on"})
        await centre.centre.apply([workload("api")])
    replica.said.clear()
    async with running(tmp_path / "centre") as centre:
        assert centre.centre.state.revision == 4
        async with centre.node("a").session() as session, trio.open_nursery() as nursery:
            await session.send(replica.hello())
            nursery.start_soon(replica.follow, session)
            await replica.at(4)
            nursery.cancel_scope.cancel()
    assert replica.said == [("roots", 0), ("private", 4), ("delta", 4)]
    assert Key("Workload", "shop", "api") in replica.objects


async def test_an_operator_asks_a_node(centre: Running) -> None:
    replica = Replica()
    async with centre.node("a").session() as session, trio.open_nursery() as nursery:
        await session.send(replica.hello())
        nursery.start_soon(replica.follow, session)
        await replica.at(2)

        async def answer() -> None:
            question = await replica.asked()
            await session.send(Answer(question.id, msgspec.Raw(b'{"topic": "' + question.topic.encode() + b'"}')))

        nursery.start_soon(answer)
        said = await centre.operator().ask("a", "status")
        assert (msgspec.json.decode(said.body), said.error) == ({"topic": "status"}, "")
        nursery.cancel_scope.cancel()
    assert (await centre.operator().ask("b", "status")).error == "node b is not connected"


async def test_a_slow_watcher_costs_the_others_nothing(tmp_path: Path) -> None:
    slow, live = Replica(), Replica()
    async with running(tmp_path / "centre", stall=Duration(0.5)) as centre:
        await centre.centre.apply([node("a"), node("b")])
        async with centre.node("a").session() as stuck, centre.node("b").session() as reading:
            await stuck.send(slow.hello())
            await reading.send(live.hello())
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(live.follow, reading)
                    await live.at(2)
                    assert {n.name: n.connected for n in centre.centre.status().nodes} == {"a": True, "b": True}
                    # More than the sockets between them hold, and the slow one reads none of it.
                    while centre.centre.status().nodes[0].connected:
                        labels = {"after": str(live.revision), "pad": "x" * 60}
                        await centre.centre.apply([workload(f"w{i}", "b", labels) for i in range(1500)])
                        await live.at(centre.centre.state.revision)
                    assert centre.centre.status().nodes[1].connected
                    nursery.cancel_scope.cancel()
            with pytest.raises(ClientError):
                await slow.follow(stuck)
        assert slow.revision < live.revision
        async with centre.node("a").session() as again, trio.open_nursery() as nursery:
            await again.send(slow.hello())
            nursery.start_soon(slow.follow, again)
            await slow.at(live.revision)
            nursery.cancel_scope.cancel()
        assert slow.objects == live.objects


async def test_strangers_do_not_shut_the_members_out(centre: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STRANGERS", 2)
    host, port = endpoint.split(centre.address)
    async with await trio.open_tcp_stream(host, port) as one, await trio.open_tcp_stream(host, port) as two:
        await one.send_all(b"\x16\x03\x01")
        await two.send_all(b"GET / HTTP/1.1\r\n\r\n")
        three = await trio.open_tcp_stream(host, port)
        async with three:
            with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
                assert not await three.receive_some(1)
    with trio.fail_after(10):
        while True:
            with contextlib.suppress(ClientError):
                await centre.operator().status()
                break


async def test_one_host_does_not_keep_the_others_out(centre: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STRANGERS", 4)
    monkeypatch.setattr(server, "SHARE", 2)
    host, port = endpoint.split(centre.address)
    async with contextlib.AsyncExitStack() as stack:
        flood = [
            await stack.enter_async_context(await trio.open_tcp_stream(host, port, local_address="127.0.0.2"))
            for _ in range(5)
        ]
        for turned_away in flood[2:]:
            with trio.fail_after(5), contextlib.suppress(trio.BrokenResourceError):
                assert not await turned_away.receive_some(1)
        assert await centre.operator().status()


@pytest.mark.parametrize("who", [OperatorIdentity(DOMAIN, "admin"), None])
async def test_no_connection_outlives_what_its_caller_showed(
    centre: Running, monkeypatch: pytest.MonkeyPatch, who: Identity | None
) -> None:
    """However busy it is kept: else an ended credential would be good for ever, and a stranger keep his place."""
    monkeypatch.setattr(server, "STRANGERS_LIFE", 3.0)
    credentials = centre.credentials(who, timedelta(seconds=4)) if who else None
    context = tls.context(x509.load_chain(centre.roots), credentials, server=False)
    async with await connect(*endpoint.split(centre.address), context, expect=CentralIdentity) as channel:

        async def ask() -> None:
            while True:
                assert (await http.request(channel, "GET", "/v1/time", host="centre")).status == 200
                await trio.sleep(0.1)

        with trio.fail_after(10), pytest.raises((HttpError, ChannelError, trio.BrokenResourceError)):
            await ask()


async def test_a_stranger_may_not_say_much(centre: Running) -> None:
    response = await centre.raw(None, "POST", "/v1/join", body=b" " * (server.STRANGERS_BODY + 1))
    assert response.status == 413


async def test_garbage_on_the_port(centre: Running) -> None:
    host, port = endpoint.split(centre.address)
    for garbage in (b"", b"\0" * 1000, b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 300):
        with contextlib.suppress(trio.BrokenResourceError):
            async with await trio.open_tcp_stream(host, port) as stream:
                await stream.send_all(garbage)
                await stream.send_eof()
                with trio.fail_after(15):
                    while await stream.receive_some(1000):
                        pass
    assert (await centre.operator().status()).revision == 2


async def test_root_of_this_machine_speaks_through_the_socket(centre: Running) -> None:
    path = centre.settings.socket
    assert path.stat().st_mode & 0o777 == 0o600
    client = Client.at_socket(path)
    csr = x509.make_csr(x509.new_key(), OperatorIdentity(DOMAIN, "alice")).decode()
    signed = await client.sign_operator(csr)
    assert x509.identity_of(x509.load_chain(signed.chain.encode())[0]) == OperatorIdentity(DOMAIN, "alice")
    with pytest.raises(Refusal, match="is no operator"):
        await client.sign_operator(x509.make_csr(x509.new_key(), WEB).decode())
    assert (await client.status()).revision == 2
    with pytest.raises(Refusal, match="is for a node; the caller is root"):
        await client.sign(csr)


async def test_a_bug_in_one_call_is_loud_and_ends_there(
    centre: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(centre.centre, "status", lambda: 1 / 0)
    with pytest.raises(Refusal) as refused:
        await centre.operator().status()
    assert (refused.value.status, refused.value.problem.kind) == (500, "bug")
    assert "ZeroDivisionError" in capsys.readouterr().out
    assert (await centre.operator().list("Node")).revision == 2


async def test_all_or_nothing(centre: Running) -> None:
    raws = [msgspec.Raw(encode(r)) for r in (node("c"), workload("api", "d"))]
    with pytest.raises(Refusal, match="there is no node d"):
        await centre.operator().apply(ApplyRequest(raws))
    assert centre.centre.state.node("c") is None
    tried = await centre.operator().apply(ApplyRequest(raws[:1], dry_run=True))
    assert (tried.revision, tried.changed, centre.centre.state.node("c")) == (2, ["node c"], None)


async def test_the_port_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(server.ListenError, match="cannot listen there"):
            await server.listen(f"127.0.0.1:{taken.getsockname()[1]}")


async def test_nobody_there(tmp_path: Path, centre: Running) -> None:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        client = Client.over_tls(
            f"127.0.0.1:{s.getsockname()[1]}", DOMAIN, centre.roots, centre.credentials(OperatorIdentity(DOMAIN, "x"))
        )
        with pytest.raises(ClientError, match="cannot be reached: Connection refused"):
            await client.status()
    assert not await Client.at_socket(tmp_path / "none.sock").reachable()


async def test_a_call_under_way_is_answered_before_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on = trio.Event(), trio.Event()
    answered: list[int] = []
    async with trio.open_nursery() as nursery, running(tmp_path / "centre") as centre:
        client, label = centre.operator(), centre.centre.label

        async def slow_label(*arguments: object) -> object:
            entered.set()
            await go_on.wait()
            return await label(*arguments)  # type: ignore[arg-type]

        async def call() -> None:
            answered.append((await client.label(LabelRequest(ResourceName("Node", "a"), {"x": "y"}))).revision)

        async def release() -> None:
            with contextlib.suppress(ClientError):
                while await client.status():
                    pass  # until nobody listens any more
            go_on.set()

        monkeypatch.setattr(centre.centre, "label", slow_label)
        await centre.centre.apply([node("a")])
        nursery.start_soon(call)
        await entered.wait()
        nursery.start_soon(release)
    assert answered == [3]
