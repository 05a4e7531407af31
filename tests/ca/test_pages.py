import socket

import pytest
import trio

from ca.http import HttpError, request
from ca.pages import MOST, open_listener, serve_pages


async def page() -> tuple[int, str, bytes]:
    return 503, "text/plain", b"not yet\n"


async def fails() -> tuple[int, str, bytes]:
    raise RuntimeError("a bug")


@pytest.fixture
async def port(nursery):
    listener = await open_listener("127.0.0.1", 0)
    nursery.start_soon(serve_pages, listener, {"/readyz": page, "/": fails})
    return listener.socket.getsockname()[1]


async def call(port: int, method: str, path: str):
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        return await request(stream, method, path, host="x")


async def test_pages(port):
    got = await call(port, "GET", "/readyz")
    assert (got.status, got.body, got.header("content-type")) == (503, b"not yet\n", "text/plain")
    assert (await call(port, "GET", "/nothing")).status == 404
    assert (await call(port, "POST", "/readyz")).status == 405
    assert (await call(port, "POST", "/readyz?x=" + "y" * 100)).status == 405
    assert (await call(port, "GET", "/")).status == 500
    assert (await call(port, "GET", "/readyz")).status == 503


async def test_too_many_connections_are_closed_unanswered(port):
    held = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(MOST)]
    await trio.testing.wait_all_tasks_blocked(0.1)
    with pytest.raises(HttpError):
        await call(port, "GET", "/readyz")
    for stream in held:
        await stream.aclose()
    await trio.testing.wait_all_tasks_blocked(0.1)
    assert (await call(port, "GET", "/readyz")).status == 503


async def test_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1 port {port}: .*in use"):
            await open_listener("127.0.0.1", port)
