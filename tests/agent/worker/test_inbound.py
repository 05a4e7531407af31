"""Connections on their way to local workloads."""

import ipaddress
import os
import socket

import msgspec
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import force_setattr

import agent.worker.inbound
from agent.authorize import Authorizer
from agent.book import Book
from agent.connections import Direction, Party, Security, Verdict
from agent.relay.loop import Relay
from agent.snapshot import Snapshot
from agent.tunnel.headers import Connect
from agent.worker.admission import endpoint, parse_authority
from agent.worker.budgets import Budgets
from agent.worker.inbound import Inbound, Marks
from agent.worker.letting_go import NO_MORE
from agent.worker.stock import Stocks
from ca.resources.mesh import Mode
from ca.resources.workload import NEVER_CAPTURED, Workload
from redirect.origdst import NotRedirected, dial_socket
from tests.agent.relay.rig import DB, WEB, Rig, receive, receive_all, rig, send, soon, wire
from tests.agent.views import mesh, node, workload


def _cannot_mark() -> str:
    try:
        dial_socket(socket.AF_INET, 0).close()
    except OSError as error:
        return f"sockets of the data path carry a mark: run as root ({error})"
    return ""


needs_marks = pytest.mark.skipif(bool(_cannot_mark()), reason=_cannot_mark() or "-")


def at(the_workload: Workload, address: str) -> Workload:
    """The workload at a loopback address, which no registry would take: traffic of tests goes nowhere else."""
    force_setattr(the_workload.spec, "address", address)
    return the_workload


# ---- authorities

addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)


@given(addresses, st.integers(1, 65535))
def test_every_sound_authority_is_read(address, port):
    assert parse_authority(endpoint(address, port)) == (address, port)


@given(st.text(max_size=60))
@example("[::1]:80\n")
@example("10.0.0.1:80 ")
@example("10.0.0.1:٨٠")
@example("010.0.0.1:80")
@example("10.0.0.1:0")
@example("10.0.0.1:65536")
@example("10.0.0.1:")
@example("[fe80::1%eth0]:80")
@example("web.shop.mesh:80")
@example("::1:80")
@example("[10.0.0.1:80")
@example("1.2.3.4@10.0.0.1:80")
def test_hostile_authorities(text):
    found = parse_authority(text)
    if found is not None:
        address, port = found
        assert address == str(ipaddress.ip_address(address))
        assert 0 < port < 65536
        assert set(text) <= set("0123456789abcdefABCDEF:.[]")


@pytest.mark.parametrize("text", ["[0:0::0:1]:80", "[::FFFF:10.0.0.1]:80", "[FD00::1]:00080"])
def test_other_spellings_come_to_the_canonical_one(text):
    address, port = parse_authority(text)
    assert port == 80
    assert address == str(ipaddress.ip_address(text[1 : text.index("]")]))


# ---- out of tunnels


class Target:
    """What listens at 127.0.0.2 and is the workload shop/db there, and the inbound part that leads to it."""

    def __init__(self, r: Rig, *, mode: Mode = Mode.PERMISSIVE, extra: tuple = ()) -> None:
        self.rig = r
        self.listener = socket.create_server(("127.0.0.2", 0))
        self.port = self.listener.getsockname()[1]
        self.db = at(workload("db", ports=(self.port,)), "127.0.0.2")
        web = at(workload("web", "n2"), "127.0.0.3")
        self.snapshot = Snapshot("n1").apply(
            1, [mesh(mode), node("n1"), node("n2", "10.0.0.2"), self.db, web, *extra], ()
        )
        self.inbound = Inbound(
            r.target.relay, r.target.book, Stocks(lambda *_: True), Marks(0xC0170001, 0), Authorizer(), Budgets()
        )
        r.target.take = lambda link, asked: self.inbound.asked(self.snapshot, link, asked)

    async def ask(self, authority: str = "", forwarded: str = 'for="127.0.0.3:4711"', trace: str = "") -> int:
        """Open a stream; -> the status answered."""
        stream = self.rig.out.core.open(Connect(authority or f"127.0.0.2:{self.port}", "", forwarded, trace))
        owner = Answer()
        stream.owner = owner
        self.rig.out.touch()
        await soon(lambda: bool(owner.status))
        self.rig.out.core.reset(stream)
        self.rig.out.touch()
        await soon(lambda: not self.rig.target.book.live)
        return owner.status

    def record(self):
        (record,) = self.rig.target.closed()
        return record

    def close(self) -> None:
        self.listener.close()


class Answer:
    """A stream's owner that only looks at the answer."""

    def __init__(self) -> None:
        self.status = 0

    def answered(self, status: int) -> None:
        self.status = status

    def receive(self, payload) -> None: ...

    deliver = ended = pump = broken = lambda *_, **__: None

    def reset(self, code: int) -> None:
        self.status = self.status or -code


@needs_marks
async def test_a_sound_request_reaches_the_workload_and_is_written_down():
    async with rig() as r:
        target = Target(r)
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        assert await target.ask(trace=trace) == 200
        record = target.record()
        assert record.source == Party("shop/web", str(WEB), "127.0.0.3:4711")
        assert record.destination == Party("shop/db", str(DB), f"127.0.0.2:{target.port}")
        assert (record.direction, record.security) == (Direction.INBOUND, Security.MTLS)
        assert record.trace == "0af7651916cd43dd8448eb211c80319c"
        target.close()


@needs_marks
@pytest.mark.parametrize(
    "forwarded",
    [
        "",
        'for="127.0.0.9:1"',  # an address where nobody of that identity lives
        'for="127.0.0.2:1"',  # another workload's
        "for=127.0.0.3:1",
        'for="127.0.0.3"',
        'for="[127.0.0.3]:1";by=x',
        'for="unknown"',
        'for="127.0.0.3:1"\n',
    ],
)
async def test_a_forged_caller_is_not_believed(forwarded):
    async with rig() as r:
        target = Target(r)
        assert await target.ask(forwarded=forwarded) == 200
        assert target.record().source == Party("", str(WEB), "127.0.0.1:0")
        target.close()


@needs_marks
async def test_authorities_that_are_no_workload_behind_this_tunnel():
    """Neither another workload's, nor another node's, nor any address in the world by a port that one serves here."""
    async with rig() as r:
        api = at(workload("api", ports=(81,)), "127.0.0.4")
        shared = workload("shared", ports=(8081,))  # at its node's address
        force_setattr(shared.spec, "service_account", "db")
        plain = at(workload("plain", enrolled=False, ports=(82,)), "127.0.0.5")
        target = Target(r, extra=(api, shared, plain))
        for authority in (
            "127.0.0.4:81",
            f"127.0.0.3:{target.port}",
            f"127.0.0.1:{target.port}",
            "127.0.0.5:82",
            "169.254.169.254:8081",
            "8.8.8.8:8081",
            "127.0.0.1:8081",
            "127.0.0.2:9",
            "db.shop.mesh:80",
            "nonsense",
            "127.0.0.2:99999",
        ):
            assert await target.ask(authority) == 400, authority
            assert target.record().verdict is Verdict.REFUSED
        for port in NEVER_CAPTURED:
            assert await target.ask(f"127.0.0.2:{port}") == 503
            assert "Culvert's own" in target.record().reason
        target.close()


@needs_marks
async def test_two_that_claim_the_place_are_both_refused():
    async with rig() as r:
        target = Target(r)
        rival = at(workload("rival", ports=(target.port,)), "127.0.0.2")
        target.snapshot = target.snapshot.apply(2, [rival], ())
        assert await target.ask() == 503
        assert "both claim" in target.record().reason
        target.close()


@needs_marks
async def test_a_workload_that_left_the_mesh_or_moved_away():
    async with rig() as r:
        target = Target(r)
        gone = workload("db", enrolled=False, ports=(target.port,))
        for change in (at(gone, "127.0.0.2"), at(workload("db", "n2", ports=(target.port,)), "127.0.0.2")):
            target.snapshot = target.snapshot.apply(2, [change], ())
            assert await target.ask() == 400
            target.record()
        target.snapshot = Snapshot("n1")
        assert await target.ask() == 400
        target.close()


@needs_marks
async def test_strict_lets_an_identity_in():
    async with rig() as r:
        target = Target(r, mode=Mode.STRICT)
        assert await target.ask() == 200
        target.close()


@needs_marks
async def test_a_foreign_trust_domain_is_refused_by_policy():
    async with rig() as r:
        target = Target(r)
        the_mesh = mesh()
        force_setattr(the_mesh.spec, "trust_domain", "other.example")
        r.into.local = type(DB)("other.example", "shop", "db")
        target.snapshot = target.snapshot.apply(2, [the_mesh], ())
        assert await target.ask() == 401
        assert "trust domain" in target.record().reason
        r.into.local = DB
        target.close()


@needs_marks
async def test_nobody_listens():
    async with rig() as r:
        target = Target(r)
        target.close()
        assert await target.ask() == 503
        assert target.record().verdict is Verdict.FAILED


@needs_marks
async def test_a_request_that_is_no_connect():
    async with rig() as r:
        target = Target(r)
        r.out.core.outgoing += b"\0\0\1\1\5\0\0\0\1\x82"  # HEADERS, END_STREAM and END_HEADERS: `:method: GET`
        r.out.core._last_id = 1
        r.out.touch()
        await soon(lambda: bool(r.target.book._closed))
        assert (target.record().verdict, r.into.closed) == (Verdict.REFUSED, False)
        assert await target.ask() == 200
        target.close()


# ---- captured in plaintext


class Plain:
    """A relay and what listens at 127.0.0.2, without a tunnel."""

    def __init__(self, nursery: trio.Nursery, mode: Mode = Mode.PERMISSIVE, stocked: list[str] | None = None) -> None:
        self.relay = Relay()
        nursery.start_soon(self.relay.run)
        self.book = Book(1, lambda: None)
        self.wanted: list[tuple[str, int, int]] = []
        self.stocks = Stocks(lambda *order: not self.wanted.append(order))
        self.stocks.serve(stocked or [])
        self.listener = trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.2", 0)))
        self.port = self.listener.getsockname()[1]
        self.inbound = Inbound(self.relay, self.book, self.stocks, Marks(0xC0170001, 0), Authorizer(), Budgets())
        self.snapshot = Snapshot("n1").apply(
            1,
            [
                mesh(mode),
                node("n1"),
                at(workload("db", ports=(self.port,)), "127.0.0.2"),
                at(workload("boxed", ports=(self.port,)), "127.0.0.6"),
                workload("shared", ports=(self.port,)),
            ],
            (),
        )

    def come(self, workload: str = "") -> trio.socket.SocketType:
        near, far = wire()
        self.inbound.plaintext(self.snapshot, workload, far, ("127.0.0.7", 4711))
        return trio.socket.from_stdlib_socket(near)

    def record(self):
        (record,) = self.book.take()[0]
        return record


@pytest.fixture
def towards(monkeypatch):
    """Says where captured connections were meant to go: what the kernel tells of real ones."""
    where: list[tuple[str, int] | Exception] = []

    def told(sock: socket.socket) -> tuple[str, int]:
        if isinstance(where[0], Exception):
            raise where[0]
        return where[0]

    monkeypatch.setattr(agent.worker.inbound, "original_destination", told)
    return where


@needs_marks
async def test_plaintext_reaches_the_workload(towards, nursery):
    plain = Plain(nursery)
    towards.append(("127.0.0.2", plain.port))
    near = plain.come()
    far, _ = await plain.listener.accept()
    await send(far, b"220 ready")
    assert await receive(near, 9) == b"220 ready"
    near.close()
    assert await receive_all(far) == b""
    far.close()
    await soon(lambda: not plain.book.live)
    record = plain.record()
    assert record.source == Party("", "", "127.0.0.7:4711")
    assert record.destination.workload == "shop/db"
    assert (record.security, record.verdict, record.received) == (Security.PLAINTEXT, Verdict.ALLOWED, 9)
    plain.listener.close()


@needs_marks
async def test_strict_refuses_plaintext(towards, nursery):
    plain = Plain(nursery, Mode.STRICT)
    towards.append(("127.0.0.2", plain.port))
    near = plain.come()
    with pytest.raises(ConnectionResetError):
        await near.recv(1)
    assert plain.record().verdict is Verdict.REFUSED
    near.close(), plain.listener.close()


@needs_marks
@pytest.mark.parametrize(
    "where", [("127.0.0.2", 9), ("10.9.9.9", 9), NotRedirected("dialled directly"), OSError(5, "no answer")]
)
async def test_plaintext_towards_nobody(towards, nursery, where):
    plain = Plain(nursery)
    towards.append(where)
    near = plain.come()
    with pytest.raises(ConnectionResetError):
        await near.recv(1)
    assert plain.record().verdict is Verdict.REFUSED
    near.close(), plain.listener.close()


@needs_marks
async def test_inside_a_namespace_every_address_is_the_workloads_and_no_neighbours(towards, nursery):
    """127.0.0.1 in there is not 127.0.0.1 here, where `shared` has the very same port."""
    plain = Plain(nursery, stocked=["shop/boxed"])
    towards.append(("127.0.0.1", plain.port))
    near = plain.come("shop/boxed")
    with pytest.raises(ConnectionResetError):
        await near.recv(1)
    record = plain.record()
    assert record.destination.workload == "shop/boxed"
    assert "no socket inside its network namespace" in record.reason
    towards[0] = ("127.0.0.2", plain.port)
    plain.stocks.add("shop/boxed", socket.AF_INET, [socket.socket().detach()])
    near.close()
    near = plain.come("shop/boxed")
    far, _ = await plain.listener.accept()
    await send(near, b"x")
    assert await receive(far, 1) == b"x"
    assert [e.destination.workload for e in plain.book.live.values()] == ["shop/boxed"]
    near.close(), far.close(), plain.listener.close()
    await soon(lambda: not plain.book.live)


@needs_marks
async def test_a_stranger_is_dialled_from_inside_or_not_at_all(nursery):
    plain = Plain(nursery, stocked=["shop/boxed"])
    boxed = next(w for w in plain.snapshot.here.values() if w.title == "shop/boxed")
    before = len(os.listdir("/proc/self/fd"))
    near, far = wire()
    entry = plain.book.enter(Direction.OUTBOUND, Security.PLAINTEXT, Party("shop/boxed"))
    plain.inbound.dial(plain.snapshot, far, "127.0.0.2", plain.port, [entry], boxed)
    with pytest.raises(ConnectionResetError):
        await trio.socket.from_stdlib_socket(near).recv(1)
    assert "no socket inside" in plain.record().reason
    near.close()
    assert len(os.listdir("/proc/self/fd")) == before
    plain.listener.close()


async def test_what_arrives_when_nothing_is_captured_any_more(towards, nursery):
    plain = Plain(nursery)
    towards.append(("127.0.0.2", plain.port))
    plain.inbound.capturing = False
    near = plain.come()
    with pytest.raises(ConnectionResetError):
        await near.recv(1)
    record = plain.record()
    assert (record.verdict, record.reason) == (Verdict.FAILED, NO_MORE)
    # Nor does a stranger's go on, that the rules did not know.
    caller, far = wire()
    entry = plain.book.enter(Direction.OUTBOUND, Security.PLAINTEXT, Party())
    plain.inbound.dial(plain.snapshot, far, "127.0.0.2", plain.port, [entry], None)
    with pytest.raises(ConnectionResetError):
        await trio.socket.from_stdlib_socket(caller).recv(1)
    assert plain.record().reason == NO_MORE
    near.close(), caller.close(), plain.listener.close()


@needs_marks
async def test_a_stranger_that_cannot_be_dialled_leaves_nothing_behind(nursery):
    plain = Plain(nursery)
    db = next(w for w in plain.snapshot.here.values() if w.title == "shop/db")
    before = len(os.listdir("/proc/self/fd"))
    near, far = wire()
    entry = plain.book.enter(Direction.OUTBOUND, Security.PLAINTEXT, Party("shop/db"))
    plain.inbound.dial(plain.snapshot, far, "255.255.255.255", 80, [entry], db)  # EACCES at once
    assert plain.record().verdict is Verdict.FAILED
    near.close()
    assert len(os.listdir("/proc/self/fd")) == before
    plain.listener.close()


def test_records_can_be_sent_to_the_supervisor():
    book = Book(1, lambda: None)
    entry = book.enter(Direction.INBOUND, Security.MTLS, Party())
    book.close(entry)
    assert msgspec.msgpack.encode(book.take()[0])
