"""A worker: the process that carries connections. It parses what strangers send, and is trusted with little.

`serve(FD)`: the supervisor's socketpair is FD. Everything else (identity of the node, certificates, the
mesh view, listening sockets) comes through it; see `messages`. The worker ends when the supervisor does.
"""

import gc
import os
import socket
import time
from typing import cast

import trio

from agent.authorize import Authorizer
from agent.book import Book
from agent.channel import Channel, ChannelClosedError, worker_end
from agent.connections import Connection, Tunnel, Verdict
from agent.messages import (
    FROM_WORKER,
    TO_WORKER,
    Active,
    Closed,
    Configure,
    Drain,
    Forget,
    FromWorker,
    Identity,
    Inquire,
    Listen,
    Namespaced,
    Notice,
    Ready,
    Role,
    Roots,
    Signs,
    Stock,
    StockWanted,
    Tables,
    Unlisten,
    View,
)
from agent.relay.loop import Relay
from agent.snapshot import Snapshot
from agent.tally import Tally
from agent.tunnel.arrivals import Arrivals
from agent.tunnel.credentials import Credentials
from agent.tunnel.link import Link
from agent.tunnel.pool import IDLE, Pool, Shared
from agent.tunnel.terms import Standing
from agent.worker import privileges
from agent.worker.budgets import Budgets
from agent.worker.inbound import Inbound, Marks
from agent.worker.letting_go import let_go
from agent.worker.listeners import Listeners
from agent.worker.outbound import Outbound
from agent.worker.rejudge import rejudge
from agent.worker.resolver import Namer, Resolver
from agent.worker.stock import Stocks
from ca.contract import ResourceName
from ca.resources.kinds import decode_known
from ca.resources.metadata import Key
from ca.revoked import Revoked

_TELL = 0.05  # seconds over which closed connections are gathered into one message
_PARTING = 1.5  # seconds for a supervisor that is busy to hear the last; it gives us 2 before it kills
_QUEUE = 4096  # messages for the supervisor that may wait; records beyond it are dropped and counted
_RECORDS = 5000  # connections in one message: far from the most that it may hold, whatever they are called
_OPENING = 15.0  # seconds for a connection to come about: two handshakes, each with its own bound, and some
_PING, _LOST = 10.0, 20.0  # seconds of silence after which a tunnel is pinged, and given up


class Worker:
    """Wires the parts together and feeds them what the supervisor says."""

    def __init__(
        self,
        channel: "Channel[FROM_WORKER, TO_WORKER]",
        config: Configure,
        relay: Relay,
        nursery: trio.Nursery,
        tally: Tally | None = None,
    ) -> None:
        self._channel = channel
        self.snapshot = Snapshot(config.node)
        self._overtime = config.overtime
        self.relay = relay
        self._news = trio.Event()
        self.book = Book(config.worker, lambda: self._news.set())
        self._outbox, self._queue = trio.open_memory_channel[FROM_WORKER](_QUEUE)
        self.credentials = Credentials(lambda: self.snapshot)
        self.stocks = Stocks(lambda name, family, count: self.say(StockWanted(name, family, count)))
        self.authorizer = Authorizer()
        marks, budgets = Marks(config.mark, config.spoof_mark), Budgets(config.workers, tally)
        inbound = Inbound(self.relay, self.book, self.stocks, marks, self.authorizer, budgets)
        inbound.capturing = config.capturing
        self.inbound = inbound
        shared = Shared()
        self.pool = Pool(self.relay, self.credentials, shared, nursery, worker=config.worker, mark=config.mark)
        self.arrivals = Arrivals(
            self.relay,
            self.credentials,
            shared,
            nursery,
            worker=config.worker,
            asked=lambda link, asked: inbound.asked(self.snapshot, link, asked),
            refused=self._refused,
        )
        outbound = Outbound(self.book, self.pool, inbound)
        self.namer = Namer.make()
        resolver = Resolver(self.book, outbound, inbound, self.namer)
        self.listeners = Listeners(
            self.relay,
            {
                Role.OUTBOUND: lambda name, sock, peer: outbound.captured(self.snapshot, name, sock, peer),
                Role.PLAINTEXT: lambda name, sock, peer: inbound.plaintext(self.snapshot, name, sock, peer),
                Role.RESOLVE: lambda _name, sock, peer: resolver.captured(self.snapshot, sock, peer),
                Role.TUNNEL: lambda _name, sock, peer: self.arrivals.arrived(sock, peer),
            },
        )
        self.listeners.storming = budgets.resting
        self._nursery = nursery

    def say(self, message: FromWorker) -> bool:
        """Queue a message for the supervisor; one too many is lost rather than waited for, and False returned."""
        try:
            self._outbox.send_nowait(cast(FROM_WORKER, message))
        except trio.WouldBlock:
            if isinstance(message, Closed):
                self.book.dropped += len(message.connections) + message.dropped
            return False
        return True

    def _refused(self, peer: str, reason: str) -> None:
        self.say(Notice("warning", "tunnel_refused", {"peer": peer, "reason": reason}))

    async def run(self) -> None:
        """Serve until the supervisor is gone or a drain is over."""
        self._nursery.start_soon(self._tell)
        self._nursery.start_soon(self._send)
        self._nursery.start_soon(self._tick)
        self.say(Ready(os.getpid()))
        try:
            while True:
                message, fds = await self._channel.receive()
                self._act(message, fds)
        except ChannelClosedError:
            self._nursery.cancel_scope.cancel()

    def _act(self, message: TO_WORKER, fds: list[int]) -> None:
        match message:
            case View():
                self._view(message)
            case Roots(pem):
                self.credentials.trust(pem)
            case Identity(uri, chain, key):
                serial = self.credentials.put(uri, chain, key)
                for link in [x for x in self.links if str(x.local) == uri and x.terms.local_serial != serial]:
                    link.drain()  # so that new connections go by the new certificate
            case Forget(uri):
                self.credentials.forget(uri)
                for link in [x for x in self.links if str(x.local) == uri]:
                    link.close("its identity is no longer held here")
            case Listen(number, role, workload):
                self.listeners.add(number, role, workload, socket.socket(fileno=fds.pop()))
            case Unlisten(number):
                self.listeners.remove(number)
            case Namespaced(workloads):
                self.stocks.serve(workloads)
            case Signs():
                self.namer.signs = message
            case Stock(workload, family):
                if self._channel.replenish():
                    self.stocks.add(workload, family, fds)
                    fds = []
                else:
                    self.stocks.decline(workload, family, len(fds))
            case Inquire(number, whole=False):  # the tables of ten thousand connections would cost more than they do
                self.say(Tables(number, [], [], self._gauges()))
            case Inquire(number):
                self._report()  # or what has just ended would stand in no table at all
                *parts, last = _parts([e.record() for e in self.book.live.values()])
                for part in parts:
                    self.say(Tables(number, part, [], more=True))
                self.say(Tables(number, last, self._tunnels(), self._gauges()))
            case Drain(seconds):
                self._nursery.start_soon(self._drain, seconds)
            case Configure(mark=mark, spoof_mark=spoof_mark, capturing=capturing):
                self.inbound.marks = Marks(mark, spoof_mark)
                if self.inbound.capturing and not capturing:
                    let_go(self.book)
                self.inbound.capturing = capturing
        for fd in fds:
            os.close(fd)
        if fds:
            self._channel.replenish()

    def _view(self, view: View) -> None:
        before = Snapshot(self.snapshot.node) if view.reset else self.snapshot
        put = list(decode_known(view.put))
        delete = [_key(name) for name in view.delete]
        after = before.apply(view.revision, put, delete)
        self.snapshot, before = after, self.snapshot
        rejudge(self.book, self.authorizer, before, after, None if view.reset else {*(r.key for r in put), *delete})
        self.authorizer.forget(after)
        if after.revoked is not before.revoked:
            self._distrust(after.revoked)
        self.say(Active(view.revision))

    def _distrust(self, revoked: Revoked) -> None:
        """End the tunnels that stand on what is revoked, and say so."""
        for link in self.links:
            if why := link.terms.objection(revoked):
                self._end(link, why, Verdict.REFUSED)
                self.say(Notice("warning", "tunnel_revoked", {"peer": link.peer_address, "reason": why}))

    def _end(self, link: Link, reason: str, verdict: Verdict) -> None:
        """Close a tunnel; its connections go on record with the reason, and look for no other."""
        for entry in [e for e in self.book.live.values() if e.tunnel == link.number]:
            if entry.carrier is not None:
                entry.carrier.abort(reason, verdict)
        link.close(reason)

    @property
    def links(self) -> list[Link]:
        """Every tunnel, whoever dialled it."""
        return [*self.pool.links, *self.arrivals.links]

    def _tunnels(self) -> list[Tunnel]:
        return [link.describe() for link in self.links]

    def _gauges(self) -> dict[str, float]:
        return {"connections": len(self.book.live), "tunnels": len(self.links)}

    # ---- tasks

    async def _send(self) -> None:
        try:
            async for message in self._queue:
                await self._channel.send(message)
        except ChannelClosedError:
            self._nursery.cancel_scope.cancel()

    async def _tell(self) -> None:
        while True:
            await self._news.wait()
            await trio.sleep(_TELL)
            self._news = trio.Event()
            self._report()

    def _report(self) -> None:
        closed, dropped = self.book.take()
        if closed or dropped:
            for part in _parts(closed):
                self.say(Closed(part, dropped))
                dropped = 0

    async def _tick(self) -> None:
        while True:
            await trio.sleep(1)
            now = time.monotonic()
            self.book.expire(_OPENING)
            self.inbound.budgets.tick(self.snapshot)
            if self._channel.replenish():  # else descriptors are too short for more
                self.listeners.resume()
                self.stocks.resume()
            self.relay.shrink()
            for link in self.links:
                link.core.tick()
                link.shrink()
                match link.terms.standing(time.time(), self._overtime):
                    case Standing.ENDING if not link.core.draining:
                        link.drain()
                    case Standing.OVER:
                        self._end(link, "the certificate of its tunnel has ended, and its overtime too", Verdict.FAILED)
                silent = now - link.heard
                if silent > _LOST and link.core.pinged:
                    link.close(f"the peer at {link.peer_address} has been silent for {silent:.0f} s")
                elif silent > _PING and not link.core.pinged:
                    link.ping()
                elif link.idle_since is not None and now - link.idle_since > IDLE:
                    if link.core.draining:
                        link.close("")
                    else:
                        link.drain()  # a stream that is being opened right now goes elsewhere

    async def _drain(self, seconds: float) -> None:
        self.listeners.close()
        self.pool.ahead = False
        for link in self.links:
            link.drain()
        with trio.move_on_after(seconds):
            while self.book.live or self.links:  # both change in the relay, which tells nobody
                await trio.sleep(_TELL)
                # Those that came about since. Before its settings a tunnel carries but one of those who wait for it.
                for link in [x for x in self.links if x.core.settled and not x.core.draining]:
                    link.drain()
        for entry in list(self.book.live.values()):
            if entry.carrier:
                entry.carrier.abort("the agent stopped and its drain time is over", Verdict.FAILED)
        self._report()
        await trio.sleep(2 * _TELL)
        with trio.move_on_after(_PARTING):
            while not self._queue.statistics().tasks_waiting_receive:  # noqa: ASYNC110 - till all is said that was to be
                await trio.sleep(_TELL)
        self._nursery.cancel_scope.cancel()


def _parts(records: list[Connection]) -> list[list[Connection]]:
    """At least one."""
    return [records[at : at + _RECORDS] for at in range(0, len(records), _RECORDS)] or [[]]


def _key(name: ResourceName) -> Key:
    return Key(name.kind, name.namespace, name.name)


async def _configured(channel: "Channel[FROM_WORKER, TO_WORKER]") -> tuple[Configure, Tally | None]:
    try:
        first, fds = await channel.receive()
    except ChannelClosedError:
        raise SystemExit(0) from None  # the supervisor found that it cannot start
    if not isinstance(first, Configure):
        raise SystemExit("culvert worker: the supervisor must speak first: start it with `culvert agent run`")
    return first, (Tally(fds.pop(), first.row, first.workers) if fds else None)


def serve(fd: int) -> None:
    """Be the worker at the other end of `fd`."""
    channel = worker_end(socket.socket(fileno=fd))
    config, tally = trio.run(_configured, channel)
    # Before there is a second thread: capabilities are each thread's own.
    privileges.drop(config.uid, config.gid, privileges.CAP_NET_RAW)
    relay = Relay(config.busy_poll)
    gc.collect()
    gc.freeze()  # what stands now stays: no later collection has to look at it, while traffic waits

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await Worker(channel, config, relay, nursery, tally).run()

    relay.host(main)
