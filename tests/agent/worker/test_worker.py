"""A worker in this process, told what to do over its channel, as the supervisor tells it."""

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import pytest
import trio

import agent.channel
import agent.worker.worker
from agent.channel import supervisor_end, worker_end
from agent.connections import Direction, Party, Security, Verdict
from agent.messages import (
    Active,
    Closed,
    Configure,
    Drain,
    Forget,
    Identity,
    Inquire,
    Listen,
    Namespaced,
    Notice,
    Ready,
    Role,
    Roots,
    Stock,
    StockWanted,
    Tables,
    Unlisten,
    View,
)
from agent.relay.loop import Relay
from agent.tunnel import frames
from agent.tunnel.headers import Connect
from agent.worker.letting_go import NO_MORE
from agent.worker.worker import Worker
from ca import x509
from ca.resources.kinds import encode
from tests.agent.relay.rig import DB, WEB, authority, descriptors, leaf, receive, receive_all, send, soon
from tests.agent.test_book import Carried
from tests.agent.tunnel.node import Host
from tests.agent.tunnel.test_arrivals import speak
from tests.agent.views import mesh, node, workload
from tests.agent.worker.test_inbound import at, needs_marks


class Boss:
    """The supervisor's end, and the worker itself to look at."""

    def __init__(self, channel, the_worker: Worker) -> None:
        self.channel, self.worker = channel, the_worker

    async def say(self, message, fds=()) -> None:
        await self.channel.send(message, fds)

    async def hear(self, kind):
        """The next message of that kind."""
        with trio.fail_after(10):
            while True:
                message, fds = await self.channel.receive()
                assert not fds
                if isinstance(message, kind):
                    return message

    async def tables(self) -> Tables:
        await self.say(Inquire(7))
        tables = await self.hear(Tables)
        assert tables.id == 7
        return tables

    async def listen(self, number: int, role: Role, workload: str = "") -> int:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            await self.say(Listen(number, role, workload), [sock.fileno()])
            return sock.getsockname()[1]

    async def furnish(self) -> int:
        """Roots, certificate and view of a node that hosts shop/db at 127.0.0.2; -> its port."""
        self.workload = trio.socket.from_stdlib_socket(socket.create_server(("127.0.0.2", 0)))
        port = self.workload.getsockname()[1]
        await self.say(Roots(x509.pem(authority().cert)))
        await self.say(Identity(str(DB), *leaf(DB)))
        objects = [mesh(), node("n1"), node("n2", "10.0.0.2"), workload("db", ports=(port,))]
        await self.say(View(5, [encode(o) for o in objects]))
        assert (await self.hear(Active)).revision == 5
        # At its place on loopback, which no message could say.
        db = at(workload("db", ports=(port,)), "127.0.0.2")
        self.worker.snapshot = self.worker.snapshot.apply(6, [db], ())
        return port


@asynccontextmanager
async def working() -> AsyncIterator[Boss]:
    theirs, ours = socket.socketpair()
    before = descriptors()
    boss_end = supervisor_end(theirs)
    worker_channel = worker_end(ours)
    async with trio.open_nursery() as outer:
        done = trio.Event()

        async def serve(task_status=trio.TASK_STATUS_IGNORED) -> None:
            config = Configure("n1", 3, 0xC0170001, 0, os.getuid(), os.getgid())
            async with trio.open_nursery() as nursery:
                relay = Relay()
                nursery.start_soon(relay.run)
                the_worker = Worker(worker_channel, config, relay, nursery)
                task_status.started(the_worker)
                await the_worker.run()
            done.set()

        boss = Boss(boss_end, await outer.start(serve))
        boss.done = done
        assert await boss.hear(Ready) == Ready(os.getpid())
        try:
            yield boss
        finally:
            if not done.is_set():  # a relay that has ended takes no tunnel off its list any more
                for link in boss.worker.links:
                    link.close("the test is over")
            boss_end.close()
            with trio.fail_after(10):
                await done.wait()
            for sock in boss.worker.listeners._socks.values():
                sock.close()
            worker_channel.close()
            if hasattr(boss, "workload"):
                boss.workload.close()
    assert descriptors() <= before - 2


async def test_it_acts_on_views_and_says_so():
    async with working() as boss:
        await boss.say(View(3, [encode(mesh()), encode(node("n1")), encode(workload("web"))]))
        assert await boss.hear(Active) == Active(3)
        assert [w.title for w in boss.worker.snapshot.local()] == ["shop/web"]
        await boss.say(View(4, [encode(mesh())], reset=True))
        assert await boss.hear(Active) == Active(4)
        assert boss.worker.snapshot.local() == []
        tables = await boss.tables()
        assert (tables.connections, tables.tunnels) == ([], [])


async def test_it_ends_with_its_supervisor():
    async with working() as boss:
        assert not boss.done.is_set()
    assert boss.done.is_set()


async def test_what_has_just_ended_is_told_before_the_tables_that_lack_it(monkeypatch):
    monkeypatch.setattr(agent.worker.worker, "_TELL", 60.0)
    async with working() as boss:
        entry = boss.worker.book.enter(Direction.INBOUND, Security.MTLS, Party())
        boss.worker.book.close(entry, Verdict.ALLOWED)
        await boss.say(Inquire(7))
        with trio.fail_after(10):
            (first, _), (second, _) = await boss.channel.receive(), await boss.channel.receive()
        assert isinstance(first, Closed)
        assert [c.id for c in first.connections] == [entry.id]
        assert (second.id, second.connections) == (7, [])


@needs_marks
async def test_a_tunnel_a_connection_and_the_end_of_its_identity():
    async with working() as boss, trio.open_nursery() as nursery:
        port = await boss.furnish()
        tunnel_port = await boss.listen(1, Role.TUNNEL)
        web = Host(nursery, WEB)
        wanted = web.want(tunnel_port)
        wanted_authority = f"127.0.0.2:{port}"
        await web.news.until(lambda: wanted.status == 400)  # asks for 10.0.0.1:80
        stream = wanted.link.core.open(Connect(wanted_authority))
        stream.owner = wanted
        wanted.status = 0
        wanted.link.touch()
        await web.news.until(lambda: wanted.status == 200)
        far, _ = await boss.workload.accept()
        tables = await boss.tables()
        assert [(c.destination.workload, c.carried) for c in tables.connections] == [("shop/db", True)]
        assert [(t.direction, t.peer_identity, t.streams) for t in tables.tunnels] == [(Direction.INBOUND, str(WEB), 1)]
        assert tables.gauges == {"connections": 1, "tunnels": 1}
        await boss.say(Forget(str(DB)))
        with pytest.raises(ConnectionResetError):
            await receive_all(far)
        closed = await boss.hear(Closed)
        while not any(c.destination.workload for c in closed.connections):
            closed = await boss.hear(Closed)
        assert (await boss.tables()).tunnels == []
        far.close()
        web.close()
        nursery.cancel_scope.cancel()


async def test_strangers_are_reported():
    async with working() as boss:
        await boss.furnish()
        port = await boss.listen(1, Role.TUNNEL)
        with socket.create_connection(("127.0.0.1", port)) as stranger:
            stranger.send(b"GET / HTTP/1.1\r\n\r\n")
            notice = await boss.hear(Notice)
        assert notice.event == "tunnel_refused"
        assert notice.facts["peer"] == "127.0.0.1"


async def test_what_was_captured_ends_when_capture_does():
    async with working() as boss:
        entry, carrier = boss.worker.book.enter(Direction.OUTBOUND, Security.MTLS, Party()), Carried()
        entry.carrier = carrier
        config = Configure("n1", 3, 0xC0170001, 0, os.getuid(), os.getgid())
        await boss.say(config)
        await boss.tables()
        assert carrier.aborted == []
        await boss.say(msgspec.structs.replace(config, capturing=False))
        await boss.tables()
        assert carrier.aborted == [(NO_MORE, Verdict.FAILED)]
        assert not boss.worker.inbound.capturing
        await boss.say(config)
        await boss.tables()
        assert boss.worker.inbound.capturing


async def test_listeners_come_and_go():
    async with working() as boss:
        await boss.furnish()
        with socket.create_server(("127.0.0.1", 0)) as sock:
            await boss.say(Listen(4, Role.TUNNEL, ""), [sock.fileno()])
            await soon(lambda: len(boss.worker.listeners._socks) == 1)
            await boss.say(Unlisten(4))
            await soon(lambda: not boss.worker.listeners._socks)


async def test_sockets_in_stock():
    async with working() as boss:
        await boss.say(Namespaced(["shop/db"]))
        orders = [await boss.hear(StockWanted), await boss.hear(StockWanted)]
        assert {o.family for o in orders} == {socket.AF_INET, socket.AF_INET6}
        socks = [socket.socket() for _ in range(3)]
        fds = [s.fileno() for s in socks]
        before = descriptors()
        await boss.say(Stock("shop/db", socket.AF_INET), fds)
        await boss.say(Stock("shop/unknown", socket.AF_INET), fds)
        await soon(lambda: len(boss.worker.stocks._shelves) == 1)
        await boss.tables()
        assert descriptors() == before + 3
        for sock in socks:
            sock.close()
        await boss.say(Namespaced([]))
        await boss.tables()


async def test_a_silent_peer_is_asked_then_given_up_and_a_live_one_is_not(monkeypatch):
    monkeypatch.setattr(agent.worker.worker, "_PING", 0.0)
    monkeypatch.setattr(agent.worker.worker, "_LOST", 0.2)
    async with working() as boss, trio.open_nursery() as nursery:
        await boss.furnish()
        port = await boss.listen(1, Role.TUNNEL)
        silent, alive = Host(nursery, WEB), Host(nursery, WEB)
        wanted = [silent.want(port), alive.want(port)]
        await silent.news.until(lambda: bool(wanted[0].status))
        await alive.news.until(lambda: bool(wanted[1].status))
        silent.relay.unregister(wanted[0].link._fd)  # killed without a word: nothing more comes from there
        await soon(lambda: len(boss.worker.arrivals.links) == 1, seconds=10)
        assert not wanted[1].link.closed
        silent.close(), alive.close()
        nursery.cancel_scope.cancel()


@needs_marks
@pytest.mark.parametrize("patient", [True, False])
async def test_draining(patient):
    async with working() as boss, trio.open_nursery() as nursery:
        port = await boss.furnish()
        web = Host(nursery, WEB)
        tunnel_port = await boss.listen(1, Role.TUNNEL)
        wanted = web.want(tunnel_port)
        await web.news.until(lambda: bool(wanted.status))
        stream = wanted.link.core.open(Connect(f"127.0.0.2:{port}"))
        stream.owner = wanted
        wanted.status = 0
        wanted.link.touch()
        await web.news.until(lambda: wanted.status == 200)
        far, _ = await boss.workload.accept()
        await boss.say(Drain(30.0 if patient else 0.3))
        await soon(lambda: wanted.link.core.draining)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", tunnel_port))
        if patient:
            await send(far, b"last words")
            far.close()
            wanted.link.core.end(stream)
            wanted.link.touch()
            with trio.fail_after(10):
                await boss.done.wait()
            assert not boss.worker.book.live
        else:
            with pytest.raises(ConnectionResetError):
                await receive(far, 1)
            with trio.fail_after(10):
                await boss.done.wait()
            far.close()
        web.close()
        nursery.cancel_scope.cancel()


@needs_marks
async def test_a_tunnel_that_comes_about_during_a_drain_is_told_too():
    """Its handshake was under way. Not told, its peer would open streams on it until all of them are cut off."""
    async with working() as boss, trio.open_nursery() as nursery:
        port = await boss.furnish()
        web = Host(nursery, WEB)
        tunnel_port = await boss.listen(1, Role.TUNNEL)
        wanted = web.want(tunnel_port)
        await web.news.until(lambda: bool(wanted.status))
        stream = wanted.link.core.open(Connect(f"127.0.0.2:{port}"))
        stream.owner = wanted
        wanted.link.touch()
        far, _ = await boss.workload.accept()
        late = trio.socket.socket()
        await late.connect(("127.0.0.1", tunnel_port))
        await soon(lambda: bool(boss.worker.arrivals._shares))
        await boss.say(Drain(60.0))
        await soon(lambda: wanted.link.core.draining)
        machine = await speak(late, WEB)
        machine.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frames.header(frames.SETTINGS, 0, 0, 0))
        await send(late, machine.take())
        assert await receive_all(late)
        late.close()
        far.close()
        wanted.link.core.end(stream)
        wanted.link.touch()
        with trio.fail_after(10):
            await boss.done.wait()
        web.close()
        nursery.cancel_scope.cancel()


async def test_what_a_drain_cuts_off_is_told_to_a_supervisor_that_is_busy():
    class Cut(Carried):
        def abort(self, reason: str = "", verdict: Verdict = Verdict.REFUSED) -> None:
            book.close(self.entry, verdict, reason)

    async with working() as boss:
        book = boss.worker.book
        for _ in range(12_000):
            entry = book.enter(Direction.INBOUND, Security.MTLS, Party("shop/web", str(WEB)))
            entry.carrier = Cut()
            entry.carrier.entry = entry
        await boss.say(Drain(0.1))
        await soon(lambda: not book.live)
        await trio.sleep(0.5)
        told = 0
        while told < 12_000:
            told += len((await boss.hear(Closed)).connections)
        with trio.fail_after(10):
            await boss.done.wait()


async def test_more_connections_than_one_message_holds(monkeypatch):
    monkeypatch.setattr(agent.channel, "MAX_BODY", 50_000)
    monkeypatch.setattr(agent.worker.worker, "_RECORDS", 100)
    async with working() as boss:
        book = boss.worker.book
        entries = [book.enter(Direction.INBOUND, Security.MTLS, Party("shop/web", str(WEB))) for _ in range(1050)]
        await boss.say(Inquire(7))
        told = [await boss.hear(Tables)]
        while told[-1].more:
            told.append(await boss.hear(Tables))
        assert [c.id for tables in told for c in tables.connections] == [e.id for e in entries]
        assert told[-1].gauges["connections"] == 1050
        for entry in entries:
            book.close(entry)
        ended = []
        while len(ended) < 1050:
            ended += (await boss.hear(Closed)).connections
        assert [c.id for c in ended] == [e.id for e in entries]


async def test_a_supervisor_that_does_not_listen_costs_records_not_memory(monkeypatch):
    monkeypatch.setattr(agent.worker.worker, "_QUEUE", 2)
    async with working() as boss:
        said = [boss.worker.say(Notice("info", "x", {"text": "y" * 100_000})) for _ in range(200)]
        assert not all(said)
        entry = boss.worker.book.enter(Direction.INBOUND, Security.MTLS, Party())
        boss.worker.book.close(entry, Verdict.ALLOWED)
        records, _ = boss.worker.book.take()
        assert not boss.worker.say(Closed(records, 3))
        assert boss.worker.book.dropped == 4
