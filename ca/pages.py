"""Small HTTP pages for machines: /metrics and readiness. Whoever may reach the address may read."""

from collections.abc import Awaitable, Callable, Mapping

import structlog
import trio

from ca.http import Request, Response, serve_connection

log: structlog.stdlib.BoundLogger = structlog.get_logger()

MOST = 64
"""Connections at once; further ones are closed unanswered."""
_IDLE = 15.0

Page = Callable[[], Awaitable[tuple[int, str, bytes]]]
"""() -> (status, content type, body)"""


async def open_listener(address: str, port: int) -> trio.SocketListener:
    """Listen; OSError names address and port."""
    try:
        (listener,) = await trio.open_tcp_listeners(port, host=address)
    except OSError as error:
        raise OSError(error.errno, f"cannot listen on {address} port {port}: {error.strerror}") from error
    return listener


async def serve_pages(listener: trio.SocketListener, pages: Mapping[str, Page]) -> None:
    """Answer GET for the paths of `pages` until cancelled; closes the listener."""
    busy = 0

    async def handle(request: Request) -> Response:
        page = pages.get(request.path)
        if page is None:
            return Response(404, f"there is {' and '.join(pages)} here\n".encode(), _kind("text/plain"))
        if request.method not in ("GET", "HEAD"):
            return Response(405, b"GET it\n", _kind("text/plain"))
        status, kind, body = await page()
        return Response(status, body, _kind(kind))

    def refused(status: int, why: str) -> None:
        log.info("refused", where="pages", status=status, why=why)

    async def serve(stream: trio.SocketStream) -> None:
        nonlocal busy
        if busy >= MOST:
            return
        busy += 1
        try:
            await serve_connection(stream, handle, max_body=0, idle_timeout=_IDLE, refused=refused)
        except Exception:
            log.exception("bug", where="pages")
        finally:
            busy -= 1

    await trio.serve_listeners(serve, [listener])


def _kind(text: str) -> list[tuple[str, str]]:
    return [("Content-Type", text)]
