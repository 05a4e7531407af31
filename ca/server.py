"""The centre's tasks: it listens, shakes hands, answers calls and serves sessions. Reads hostile bytes (through http).

Who may cost what: a stranger (no certificate yet, or none at all) has one of STRANGERS places, of which one address may
have a SHARE; its handshake must be done in seconds and its requests must be small; members of the mesh share the
`connections` of the settings. Beyond that a connection is closed unanswered.

`run` owns every task. It ends at SIGTERM or SIGINT: no new connections, sessions are cut (nodes go on without
them), calls under way get GRACE seconds. The store is the caller's.
"""

import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
import trio
from OpenSSL import SSL

from ca import api, endpoint, http, tls, x509
from ca.authority import Authority, Refused
from ca.central import CentralSettings
from ca.centre import Centre
from ca.channel import Channel, ChannelError, keep_alive
from ca.contract import MAX_BODY, TIME_HEADER, VERSION, VERSION_HEADER
from ca.frames import centre_side
from ca.identity import CentralIdentity
from ca.keeper import Keeper
from ca.metrics import CONTENT_TYPE, exposition
from ca.notify import keep_watchdog, notify
from ca.pages import open_listener, serve_pages
from ca.store import Store, StoreError

STRANGERS = 256
"""Connections at once that have not shown a certificate: handshakes, and nodes that join."""

SHARE = 64
"""Of them from one address: one host alone does not keep everybody out."""

STRANGERS_LIFE = 30.0
"""Seconds of a connection without a certificate: a join takes one, and whoever stays takes a place from the others."""

STRANGERS_BODY = 2**16
"""Bytes of a request from somebody without a certificate; a join has about a thousand."""

GRACE = 3.0
"""Seconds for calls under way at the end."""

RENEWAL_CHECK = 60.0
"""Seconds between looks at the clock: it may jump, as after a suspend."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class ListenError(Exception):
    """The centre cannot listen where it should; the message says why."""


async def run(settings: CentralSettings, store: Store, authority: Authority, advertise: str) -> None:
    """Serve until SIGTERM or SIGINT. ListenError, StoreError."""
    centre = Centre(
        store,
        authority,
        advertise=advertise,
        tick=settings.tick,
        stall=settings.stall,
        thresholds=settings.alarms.thresholds(),
    )
    listeners = await listen(settings.listen)
    pages = await _metrics_listener(settings.metrics)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            bound = await nursery.start(serve, centre, settings, listeners)
            log.info("ready", listen=bound, advertise=advertise, trust_domain=centre.trust_domain)
            notify("READY=1")
            nursery.start_soon(keep_watchdog)
            if pages:

                async def page() -> tuple[int, str, bytes]:
                    return 200, CONTENT_TYPE, await trio.to_thread.run_sync(exposition, centre.facts())

                nursery.start_soon(serve_pages, pages, {"/metrics": page, "/": page})
            async for number in signals:
                log.info("stopping", signal=signal.Signals(number).name)
                notify("STOPPING=1")
                nursery.cancel_scope.cancel()


async def listen(where: str) -> list[trio.SocketListener]:
    """Listening sockets at HOST:PORT; the caller closes them. ListenError."""
    host, port = endpoint.split(where)
    try:
        return list(await trio.open_tcp_listeners(port, host=host))
    except OSError as e:
        raise ListenError(f"{where}: cannot listen there: {e.strerror or e}") from e


async def _metrics_listener(where: str) -> trio.SocketListener | None:
    """Where the metrics are served. None if nowhere, or not possible: the centre does without."""
    if not where:
        return None
    try:
        return await open_listener(*endpoint.split(where))
    except OSError as e:
        log.warning("no-metrics", listen=where, why=e.strerror)
        return None


async def serve(
    centre: Centre,
    settings: CentralSettings,
    listeners: list[trio.SocketListener],
    *,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled, then close the listeners; started with the HOST:PORT of the first."""
    local = _local_listener(settings.socket)
    front = Front(centre, settings.connections)
    keeper = Keeper(centre)
    try:
        await keeper.look()  # before ours is renewed: it can live no longer than the issuing one
        await front.renew(settings.name)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(centre.feed.run)
            nursery.start_soon(front.keep_renewed, settings.name)
            nursery.start_soon(keeper.run)
            connections = await nursery.start(_hold)
            try:
                name = listeners[0].socket.getsockname()
                task_status.started(endpoint.join(name[0], name[1]))
                async with trio.open_nursery() as listening:
                    for handler, some in ((front.welcome, listeners), (front.welcome_local, [local] if local else [])):
                        if some:
                            listening.start_soon(_listen, handler, some, connections.nursery)
            finally:
                centre.sessions.drop_all()
                connections.end_within(GRACE)
    finally:
        for listener in (*listeners, *([local] if local else [])):
            listener.socket.close()
        if local:
            settings.socket.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Connections:
    """A nursery that outlives a cancellation around it by the grace it is given."""

    nursery: trio.Nursery
    scope: trio.CancelScope
    over: trio.Event

    def end_within(self, seconds: float) -> None:
        self.scope.deadline = trio.current_time() + seconds
        self.over.set()


async def _hold(*, task_status: trio.TaskStatus[_Connections]) -> None:
    with trio.CancelScope(shield=True) as scope:
        async with trio.open_nursery() as nursery:
            over = trio.Event()
            task_status.started(_Connections(nursery, scope, over))
            await over.wait()


async def _listen(
    handler: Callable[[trio.SocketStream], Awaitable[None]],
    listeners: list[trio.SocketListener],
    connections: trio.Nursery,
) -> None:
    await trio.serve_listeners(handler, listeners, handler_nursery=connections)


class Front:
    """What happens to one connection. Never raises for what a peer, or a bug in one call, does."""

    def __init__(self, centre: Centre, connections: int) -> None:
        self._centre = centre
        self._room = connections
        self._context: SSL.Context | None = None
        self._until = datetime.now(UTC)
        self._members = 0
        self._strangers: Counter[str] = Counter()

    async def renew(self, name: str) -> None:
        """Take a new certificate for the centre itself; connections from then on see it."""
        authority = self._centre.authority
        key = x509.new_key()
        csr = x509.make_csr(key, CentralIdentity(authority.trust_domain, name))
        now = datetime.now(UTC)
        chain = await trio.to_thread.run_sync(authority.sign_central, name, csr, now)
        self._context = tls.context(
            authority.roots, (x509.pem(*chain), x509.key_pem(key)), server=True, peer_certificate=False
        )
        self._until = now + (chain[0].not_valid_after_utc - now) / 2

    async def keep_renewed(self, name: str) -> None:
        """Renew at half of each certificate's life."""
        while True:
            await trio.sleep(min(RENEWAL_CHECK, max(1.0, (self._until - datetime.now(UTC)).total_seconds())))
            if datetime.now(UTC) >= self._until:
                try:
                    await self.renew(name)
                    log.info("own-certificate-renewed")
                    self._centre.trust.failing.pop("own", None)
                except (StoreError, Refused) as e:
                    log.error("own-certificate-not-renewed", error=str(e))
                    self._centre.trust.failing["own"] = f"the centre's own certificate could not be renewed: {e}"

    async def welcome(self, transport: trio.SocketStream) -> None:
        """Serve one TCP connection, and close it."""
        context, host, peer = self._context, *_where(transport)  # asked now: who has gone has no address
        limit = SHARE if self._strangers[host] >= SHARE else STRANGERS
        if self._strangers[host] >= SHARE or self._strangers.total() >= STRANGERS or context is None:
            log.warning("too-many-strangers", limit=limit, peer=peer)
            await trio.aclose_forcefully(transport)
            return
        self._strangers[host] += 1
        stranger = True
        try:
            keep_alive(transport)
            async with Channel(transport, context, server=True) as channel:
                await channel.handshake()
                if channel.peer is not None:
                    if self._members >= self._room:
                        log.warning("too-many-connections", limit=self._room, peer=str(channel.peer))
                        return
                    self._place_free(host)
                    stranger = False
                    self._members += 1
                caller = channel.peer or api.Stranger(channel.binding)
                with trio.move_on_after(_left(channel)) as life:
                    await self._serve(channel, caller, _serial(channel))
                if life.cancelled_caught:
                    why = "it showed no certificate" if stranger else "its certificate has ended"
                    log.info("connection-ended", caller=api.name(caller), peer=peer, why=why)
        except (ChannelError, OSError) as e:
            log.info("connection-failed", peer=peer, why=str(e))
        except Exception:
            log.exception("bug", peer=peer)
        finally:
            if stranger:
                self._place_free(host)
            else:
                self._members -= 1

    def _place_free(self, host: str) -> None:
        """One stranger less from there."""
        self._strangers[host] -= 1
        if not self._strangers[host]:
            del self._strangers[host]

    async def welcome_local(self, stream: trio.SocketStream) -> None:
        """Serve one connection of the Unix socket, and close it."""
        async with stream:
            credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            uid = int.from_bytes(credentials[4:8], sys.byteorder)
            if uid not in (0, os.geteuid()):
                log.warning("local-refused", uid=uid)
                return
            try:
                await self._serve(stream, api.LOCAL)
            except OSError as e:
                log.info("connection-failed", peer="local", why=str(e))
            except Exception:
                log.exception("bug", peer="local")

    async def _serve(self, stream: trio.abc.Stream, caller: api.Caller, serial: str = "") -> None:
        async def handle(request: http.Request) -> http.Response:
            if request.path == api.SESSION and request.method == "GET":
                return self._session(caller, request, serial)
            version = request.header(VERSION_HEADER)
            reply = await api.answer(
                self._centre, caller, request.method, request.path, request.query, version, request.body, serial
            )
            return http.Response(reply.status, reply.body, self._headers())

        def refused(status: int, why: str) -> None:
            log.info("refused", caller=api.name(caller), status=status, why=why[:500])

        most = STRANGERS_BODY if isinstance(caller, api.Stranger) else MAX_BODY
        await http.serve_connection(stream, handle, max_body=most, refused=refused)

    def _session(self, caller: api.Caller, request: http.Request, serial: str) -> http.Response:
        try:
            node = api.may_watch(self._centre, caller, serial)
        except Refused as e:
            log.info("refused", call=f"GET {api.SESSION}", caller=api.name(caller), status=403, why=str(e))
            reply = api.problem(403, str(e))
            return http.Response(reply.status, reply.body, self._headers())
        if request.upgrade != "culvert":
            reply = api.problem(426, f"{api.SESSION} is called with Upgrade: culvert")
            return http.Response(reply.status, reply.body, (*self._headers(), ("Upgrade", "culvert")))

        async def run(stream: trio.abc.Stream, early: bytes) -> None:
            await self._centre.sessions.serve(node.name, centre_side(stream, early), serial)

        return http.Response(101, headers=self._headers(), upgrade=run)

    def _headers(self) -> http.Headers:
        now = f"{self._centre.now().timestamp():.6f}"
        return (VERSION_HEADER, VERSION), (TIME_HEADER, now), ("Content-Type", "application/json")


def _left(channel: Channel) -> float:
    """Seconds that the peer's certificate still lives: nothing is asked with it afterwards, and no session goes on."""
    certificate = channel.peer_certificate
    if certificate is None:
        return STRANGERS_LIFE
    return max(0.0, (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds())


def _local_listener(path: Path) -> trio.SocketListener | None:
    """A Unix socket that only its owner can open. None if it cannot be made: the centre does without."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    before = os.umask(0o177)
    try:
        path.unlink(missing_ok=True)  # whoever left it is gone: the store has one process
        made.bind(str(path))
        made.listen(16)
        return trio.SocketListener(trio.socket.from_stdlib_socket(made))
    except OSError as e:
        log.warning("no-local-socket", path=str(path), why=str(e))
        made.close()
        return None
    finally:
        os.umask(before)


def _serial(channel: Channel) -> str:
    certificate = channel.peer_certificate
    return "" if certificate is None else x509.serial(certificate)


def _where(transport: trio.SocketStream) -> tuple[str, str]:
    """The peer's address, and that with its port."""
    try:
        name = transport.socket.getpeername()
    except OSError:
        return "gone", "gone"
    return name[0], endpoint.join(name[0], name[1])
