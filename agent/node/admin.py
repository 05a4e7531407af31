"""The admin socket: what the node's own commands ask, over HTTP/1.1 with JSON on a Unix socket for root.

    GET  /v1/status /v1/workloads /v1/discovered /v1/certificates /v1/connections /v1/tunnels /v1/capture
         /v1/pre-enrolment /v1/plan /v1/check
    POST /v1/capture/on /v1/capture/off /v1/capture/apply /v1/capture/confirm /v1/pre-enrolment/cut
         /v1/leave /v1/drain

The GET topics answer the centre's questions as well.
"""

import contextlib
import errno
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import structlog
import trio

from agent.node.files import StateError
from ca.contract import Problem
from ca.hints import did_you_mean
from ca.http import Request, Response, serve_connection

log: structlog.stdlib.BoundLogger = structlog.get_logger()

MOST = 32
"""Connections at once: these are people and their scripts."""
_JSON = (("Content-Type", "application/json"),)

Topic = Callable[[], Awaitable[msgspec.Struct]]
Order = Callable[[bytes], Awaitable[msgspec.Struct]]
"""From a body, which may be anything: msgspec.MsgspecError."""


class AdminError(Exception):
    """The admin socket cannot be had; the message says why."""


class Admin:
    """Answers `topics` (name -> answer) with GET and carries `commands` out with POST; `orders` are commands that need
    to be told more, as JSON."""

    def __init__(
        self, topics: Mapping[str, Topic], commands: Mapping[str, Topic], orders: Mapping[str, Order] | None = None
    ) -> None:
        self._topics = topics
        self._commands = commands
        self._orders = orders or {}

    async def answer(self, topic: str) -> bytes:
        """A topic's answer as JSON; KeyError names those there are."""
        if topic not in self._topics:
            raise KeyError(f"there is no topic {topic[:100]!r}{did_you_mean(topic[:100], self._topics)}")
        return msgspec.json.encode(await self._topics[topic]())

    async def handle(self, request: Request) -> Response:
        """One call."""
        prefix, _, name = request.path.lstrip("/").partition("/")
        table = {"GET": self._topics, "POST": self._commands}.get(request.method, {})
        if prefix == "v1" and name in table:
            try:
                return Response(200, msgspec.json.encode(await table[name]()), _JSON)
            except StateError as error:
                return _problem(503, str(error))
        if request.method == "POST" and prefix == "v1" and name in self._orders:
            try:
                return Response(200, msgspec.json.encode(await self._orders[name](request.body)), _JSON)
            except msgspec.MsgspecError as error:
                return _problem(400, f"{request.path}: {error}")
            except StateError as error:
                return _problem(503, str(error))
        everything = [f"/v1/{n}" for n in (*self._topics, *self._commands, *self._orders)]
        if request.path in everything:
            return _problem(405, f"{request.path} is not called with {request.method}")
        return _problem(404, f"there is no {request.path[:100]}{did_you_mean(request.path[:100], everything)}")

    async def serve(self, listening: socket.socket) -> None:
        """Until cancelled. The caller closes the socket."""
        places = trio.Semaphore(MOST)
        async with trio.open_nursery() as nursery:
            with trio.socket.from_stdlib_socket(listening.dup()) as accepting:
                while True:
                    await places.acquire()
                    try:
                        connection, _ = await accepting.accept()
                    except OSError as error:
                        places.release()
                        log.warning("admin-accept-failed", error=str(error))
                        await trio.sleep(0.1)
                        continue
                    nursery.start_soon(self._serve, trio.SocketStream(connection), places)

    async def _serve(self, stream: trio.SocketStream, places: trio.Semaphore) -> None:
        try:
            async with stream:
                await serve_connection(stream, self.handle)
        except Exception:
            log.exception("bug", where="admin")
        finally:
            places.release()


@contextlib.contextmanager
def admin_socket(path: Path) -> Iterator[socket.socket]:
    """A socket that listens at `path`, 0600, until the end of the block. A file left by an agent that is gone is
    replaced; AdminError when one lives there: as long as the block lasts, there is no other on this path."""
    sock = _open(path)
    try:
        yield sock
    finally:
        path.unlink(missing_ok=True)
        sock.close()


def _open(path: Path) -> socket.socket:
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        _make_room(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            # Not a moment with a wider mode: whoever may connect may switch capture off.
            before = os.umask(0o177)
            try:
                sock.bind(str(path))
            finally:
                os.umask(before)
            sock.listen(MOST)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise
    except OSError as error:
        raise AdminError(f"admin socket {path}: {error.strerror or error}; run as root, or set run_dir") from error
    return sock


def _make_room(path: Path) -> None:
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.settimeout(1.0)
            probe.connect(str(path))
        except OSError as error:
            if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
                with contextlib.suppress(FileNotFoundError):
                    path.unlink()
                return
    raise AdminError(
        f"admin socket {path}: another agent runs on this machine and answers there; stop it first "
        "(`systemctl stop culvert-agent`)"
    )


def _problem(status: int, message: str) -> Response:
    return Response(status, msgspec.json.encode(Problem(message)), _JSON)
