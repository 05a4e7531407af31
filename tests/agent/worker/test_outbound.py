"""Captured connections on their way out: from the capture socket to a tunnel, a neighbour, a stranger or nowhere."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from msgspec.structs import replace

import agent.worker.outbound
from agent.authorize import Authorizer
from agent.book import Book
from agent.connections import Connection, Party, Security, Verdict
from agent.snapshot import Snapshot
from agent.tunnel import core as core_module
from agent.worker.budgets import Budgets
from agent.worker.inbound import Inbound, Marks
from agent.worker.letting_go import NO_MORE
from agent.worker.outbound import Outbound, ours
from agent.worker.stock import Stocks
from ca.resources.limits import Limits
from ca.resources.mesh import Egress, Mode
from redirect.origdst import NotRedirected
from tests.agent.relay.rig import DB, WEB, News, receive, receive_all, send, soon, wire
from tests.agent.tunnel.node import Host, needs_marks
from tests.agent.views import mesh, node, workload
from tests.agent.worker.test_inbound import at
from tests.agent.worker.test_listeners import no_descriptors_left

pytestmark = needs_marks


class Side:
    """A whole node: its tunnels, its book, and both directions."""

    def __init__(self, nursery: trio.Nursery, name: str, number: int, *identities) -> None:
        self.host = Host(nursery, *identities)
        self.news = News()
        self.book = Book(number, self.news.tell)
        self.snapshot = Snapshot(name)
        self.stocks = Stocks(lambda *_: True)
        self.inbound = Inbound(self.host.relay, self.book, self.stocks, Marks(0xC0170001, 0), Authorizer(), Budgets())
        self.outbound = Outbound(self.book, self.host.pool, self.inbound)
        self.host.arrivals._asked = lambda link, asked: self.inbound.asked(self.snapshot, link, asked)

    def capture(self, workload: str = "shop/web") -> trio.socket.SocketType:
        near, far = wire()
        self.outbound.captured(self.snapshot, workload, far, ("127.0.0.3", 4711))
        return trio.socket.from_stdlib_socket(near)

    async def closed(self) -> Connection:
        await self.news.until(lambda: bool(self.book._closed))
        return self.book.take()[0][0]


class Scene:
    """shop/web on n1 at 127.0.0.3, shop/db on n2 at 127.0.0.2 (a real server), both nodes at 127.0.0.1."""

    def __init__(self, nursery: trio.Nursery, towards: list) -> None:
        self.one, self.two = Side(nursery, "n1", 1, WEB), Side(nursery, "n2", 2, DB)
        self.listener = trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.2", 0)))
        self.port = self.listener.getsockname()[1]
        self.tunnel_port = self.two.host.listen()
        self.towards = towards
        self.put(mesh())

    def put(self, the_mesh, *more) -> None:
        n1, n2 = node("n1"), node("n2")
        for each in (n1, n2):
            at(each, "127.0.0.1")
        n2 = at(replace(n2, spec=replace(node("x", "10.0.0.9").spec, tunnel_port=self.tunnel_port)), "127.0.0.1")
        web = at(workload("web", "n1"), "127.0.0.3")
        db = at(workload("db", "n2", ports=(self.port,)), "127.0.0.2")
        for side in (self.one, self.two):
            side.snapshot = Snapshot(side.snapshot.node).apply(1, [the_mesh, n1, n2, web, db, *more], ())

    def aim(self, where) -> None:
        self.towards[:] = [where]

    async def accept(self) -> trio.socket.SocketType:
        with trio.fail_after(10):
            return (await self.listener.accept())[0]


@pytest.fixture
def towards(monkeypatch):
    """Says where captured connections were meant to go: what the kernel tells of real ones."""
    where: list = []

    def told(sock: socket.socket) -> tuple[str, int]:
        if isinstance(where[0], Exception):
            raise where[0]
        return where[0]

    monkeypatch.setattr(agent.worker.outbound, "original_destination", told)
    return where


@asynccontextmanager
async def scene(towards: list) -> AsyncIterator[Scene]:
    async with trio.open_nursery() as nursery:
        found = Scene(nursery, towards)
        try:
            found.aim(("127.0.0.2", found.port))
            yield found
        finally:
            found.listener.close()
            for side in (found.one, found.two):
                side.host.close()
            nursery.cancel_scope.cancel()


async def test_through_a_tunnel_with_the_same_facts_on_both_nodes(towards):
    async with scene(towards) as s:
        near = s.one.capture()
        far = await s.accept()
        await send(near, b"question")
        assert await receive(far, 8) == b"question"
        await send(far, b"answer!")
        assert await receive(near, 7) == b"answer!"
        near.close()
        assert await receive_all(far) == b""
        far.close()
        here, there = await s.one.closed(), await s.two.closed()
        for record in (here, there):
            assert (record.sent, record.received, record.verdict) == (8, 7, Verdict.ALLOWED)
            assert record.security is Security.MTLS
            assert (record.source.workload, record.source.identity) == ("shop/web", str(WEB))
            assert (record.destination.workload, record.destination.identity) == ("shop/db", str(DB))
            assert record.source.address == "127.0.0.3:4711"
            assert record.destination.address == f"127.0.0.2:{s.port}"
        assert here.trace == there.trace != ""


async def test_who_is_over_its_budget_is_named_though_nobody_looked_where_to(towards):
    async with scene(towards) as s:
        web = workload("web", "n1")
        web = replace(web, spec=replace(web.spec, limits=Limits(connections=1)))
        s.put(mesh(), at(web, "127.0.0.3"))
        first = s.one.capture()
        far = await s.accept()
        s.aim(("127.0.0.9", 4242))
        over = s.one.capture()
        record = await s.one.closed()
        assert (record.verdict, record.over_budget) == (Verdict.REFUSED, True)
        assert record.source == Party("shop/web", str(WEB), "127.0.0.3:4711")
        assert record.destination == Party(address="127.0.0.9:4242")
        s.put(mesh(), at(web, "127.0.0.3"))  # what was remembered of ways is void
        s.aim(("127.0.0.2", s.port))
        again = s.one.capture()
        record = await s.one.closed()
        assert record.destination == Party("shop/db", str(DB), f"127.0.0.2:{s.port}")
        for each in (over, again, first, far):
            each.close()
        assert (await s.one.closed()).verdict is Verdict.ALLOWED


async def test_a_connection_that_lost_its_tunnel_before_the_answer_takes_another(towards):
    async with scene(towards) as s:
        real = s.two.host.arrivals._asked
        lost = []

        def once(link, asked) -> None:
            if lost:
                real(link, asked)
            else:
                lost.append(link)
                link.close("killed before it answered")

        s.two.host.arrivals._asked = once
        near = s.one.capture()
        far = await s.accept()
        await send(near, b"hello")
        assert await receive(far, 5) == b"hello"
        near.close(), far.close()


async def test_early_bytes_that_may_have_arrived_are_not_sent_twice(towards):
    async with scene(towards) as s:

        def kill(link, asked) -> None:
            s.one.host.nursery.start_soon(later, link)

        async def later(link) -> None:
            await soon(lambda: any(e.carrier.sent for e in s.one.book.live.values()))
            link.close("killed with bytes under way")

        s.two.host.arrivals._asked = kill
        near = s.one.capture()
        await send(near, b"pay 5 euros")
        with pytest.raises(ConnectionResetError):
            await receive_all(near)
        assert (await s.one.closed()).verdict is Verdict.FAILED
        assert s.two.host.dialled == 1
        near.close()


async def test_a_peer_that_refuses_for_want_of_room_is_asked_elsewhere_with_the_early_bytes(towards):
    async with scene(towards) as s:
        blocker = s.one.capture()
        far = await s.accept()
        # The peer's real cap is lower than it said.
        real, core_module.MAX_STREAMS = core_module.MAX_STREAMS, 1
        try:
            near = s.one.capture()
            await send(near, b"early")
            with pytest.raises(ConnectionResetError):  # three times the same tunnel, which seems to have room
                await receive_all(near)
            assert "reset by the other side" in (await s.one.closed()).reason
            near.close()
        finally:
            core_module.MAX_STREAMS = real
        near = s.one.capture()
        await send(near, b"early")
        other = await s.accept()
        assert await receive(other, 5) == b"early"
        for sock in (blocker, far, near, other):
            sock.close()


async def test_nobody_at_the_other_node(towards):
    async with scene(towards) as s:
        for sock in s.two.host._listeners:
            sock.close()
        with socket.create_server(("127.0.0.1", 0)) as gone:
            s.tunnel_port = gone.getsockname()[1]
        s.put(mesh())
        near = s.one.capture()
        with pytest.raises(ConnectionResetError):
            await receive_all(near)
        record = await s.one.closed()
        assert record.verdict is Verdict.FAILED
        assert "is its agent running?" in record.reason
        near.close()


@pytest.mark.parametrize(
    ("where", "egress", "words"),
    [
        (("127.0.0.2", 15008), Egress.BYPASS, "one of Culvert's own"),
        (("9.9.9.9", 80), Egress.REGISTRY_ONLY, "registry-only"),
        (NotRedirected("dialled directly"), Egress.BYPASS, "dialled directly"),
        (OSError(5, "no answer"), Egress.BYPASS, "no answer"),
    ],
)
async def test_refused_at_once(towards, where, egress, words):
    async with scene(towards) as s:
        the_mesh = mesh()
        s.put(replace(the_mesh, spec=replace(the_mesh.spec, egress=egress)))
        s.aim(where)
        near = s.one.capture()
        with pytest.raises(ConnectionResetError):
            await receive_all(near)
        record = await s.one.closed()
        assert record.verdict is Verdict.REFUSED
        assert words in record.reason
        near.close()


async def test_what_arrives_when_nothing_is_captured_any_more(towards):
    async with scene(towards) as s:
        s.one.inbound.capturing = False
        near = s.one.capture()
        with pytest.raises(ConnectionResetError):
            await receive_all(near)
        record = await s.one.closed()
        assert (record.verdict, record.reason) == (Verdict.FAILED, NO_MORE)
        assert record.destination.address == f"127.0.0.2:{s.port}"
        near.close()


@pytest.mark.parametrize("workload", ["shop/gone", "nonsense", ""])
async def test_the_socket_of_a_workload_that_is_no_longer_enrolled(towards, workload):
    async with scene(towards) as s:
        near = s.one.capture(workload)
        with pytest.raises(ConnectionResetError):
            await receive_all(near)
        assert "no longer enrolled" in (await s.one.closed()).reason
        near.close()


async def test_a_way_that_was_taken_before_is_forgotten_with_the_view(towards):
    async with scene(towards) as s:
        for _ in range(2):
            near = s.one.capture()
            (await s.accept()).close()
            assert await receive_all(near) == b""
            near.close()
            assert (await s.one.closed()).destination.identity == str(DB)
        s.one.snapshot = s.one.snapshot.apply(2, [], [workload("web").key])
        near = s.one.capture()
        with pytest.raises(ConnectionResetError):
            await receive_all(near)
        assert "no longer enrolled" in (await s.one.closed()).reason
        near.close()


@pytest.mark.parametrize("egress", [Egress.BYPASS, Egress.OBSERVE])
async def test_a_stranger_in_plaintext(towards, egress):
    async with scene(towards) as s:
        the_mesh = mesh(Mode.STRICT)
        s.put(replace(the_mesh, spec=replace(the_mesh.spec, egress=egress)))
        outside = trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.9", 0)))
        s.aim(outside.getsockname())
        near = s.one.capture()
        far, _ = await outside.accept()
        await send(near, b"hello")
        assert await receive(far, 5) == b"hello"
        near.close(), far.close(), outside.close()
        assert (await s.one.closed()).security is Security.PLAINTEXT


async def test_a_stranger_takes_two_descriptors_of_the_callers_budget(towards):
    """The captured socket and the one that dials: else one workload could have all that a worker may open."""
    async with scene(towards) as s:
        web = workload("web", "n1")
        web = replace(web, spec=replace(web.spec, limits=Limits(descriptors=3)))
        s.put(mesh(), at(web, "127.0.0.3"))
        outside = trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.9", 0)))
        s.aim(outside.getsockname())
        first, over = s.one.capture(), s.one.capture()
        record = await s.one.closed()
        assert (record.verdict, record.over_budget) == (Verdict.REFUSED, True)
        assert record.reason == "over its budget of descriptors in the agent: 3 are in use"
        far, _ = await outside.accept()
        first.close(), far.close(), over.close()
        assert (await s.one.closed()).verdict is Verdict.ALLOWED
        again = s.one.capture()
        far, _ = await outside.accept()
        again.close(), far.close(), outside.close()
        assert (await s.one.closed()).verdict is Verdict.ALLOWED


async def test_a_neighbour_is_judged_and_entered_for_both_ends(towards):
    async with scene(towards) as s:
        local = at(workload("local", "n1", ports=(s.port,)), "127.0.0.2")
        s.put(mesh(Mode.STRICT), local, workload("db", "n2", enrolled=False))
        near = s.one.capture()
        far = await s.accept()
        await send(far, b"hello")
        assert await receive(near, 5) == b"hello"
        assert len(s.one.book.live) == 2
        near.close(), far.close()
        await s.one.news.until(lambda: not s.one.book.live)
        out, into = s.one.book.take()[0]
        assert out.security is into.security is Security.LOCAL
        assert out.trace == into.trace
        assert (out.destination.workload, into.source.workload) == ("shop/local", "shop/web")


async def test_without_a_descriptor_to_ask_whose_the_address_is(towards):
    """The port is that of a workload of this node: it may be meant."""
    async with scene(towards) as s:
        s.put(mesh(), at(workload("local", "n1", ports=(8080,)), "127.0.0.1"))
        s.aim(("192.0.2.1", 8080))
        near, far = wire()
        with no_descriptors_left():
            s.one.outbound.captured(s.one.snapshot, "shop/web", far, ("127.0.0.3", 4711))
        record = await s.one.closed()
        assert record.verdict is Verdict.FAILED
        assert record.reason == "whose address that is cannot be asked: Too many open files"
        near.close()


def test_which_addresses_are_ours():
    assert ours("127.0.0.1")
    assert ours("127.200.3.4")
    assert not ours("192.0.2.1")
    assert not ours("2001:db8::1")
