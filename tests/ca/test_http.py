"""HTTP over streams: calls that work, and peers that do not behave. Real sockets for what depends on them; memory and a
virtual clock for the rest."""

import contextlib
import functools
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import trio
import trio.testing
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ca.http import (
    MAX_HEADER,
    Handler,
    HttpError,
    Request,
    Response,
    request,
    serve_connection,
    upgrade,
)
from ca.identity import NodeIdentity
from tests.ca.loopback import client_context, credentials, dial, server_context, serving

Stream = trio.abc.Stream
MAX = 1000
GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"


async def mirror(request: Request) -> Response:
    """Says what it was asked."""
    said = f"{request.method} {request.path} {request.query} {request.header('x-test')} ".encode()
    return Response(200, said + request.body, [("Content-Type", "text/plain")])


def serve(stream: Stream, handler: Handler = mirror) -> Awaitable[None]:
    return serve_connection(stream, handler, max_body=MAX, header_timeout=10, idle_timeout=60)


@contextlib.asynccontextmanager
async def client(handler: Handler = mirror) -> AsyncIterator[trio.StapledStream]:
    """The client's end of a served connection in memory; both ends are closed after it."""
    here, there = trio.testing.memory_stream_pair()

    async def run() -> None:
        async with there:
            await serve(there, handler)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        async with here:
            yield here


async def said(stream: Stream) -> bytes:
    """All the server says until it ends the connection."""
    got = bytearray()
    while data := await stream.receive_some():
        got += data
    return bytes(got)


# Calls


async def test_calls_follow_each_other_on_one_stream() -> None:
    async with client() as stream:
        for n in range(3):
            response = await request(stream, "POST", f"/a?n={n}", host="x", body=b"body", headers=[("X-Test", "t")])
            assert (response.status, response.last) == (200, False)
            assert response.body == f"POST /a {{'n': '{n}'}} t body".encode()
            assert response.header("content-type") == "text/plain"
        assert (await request(stream, "GET", "/", host="x")).body == b"GET / {}  "
        head = await request(stream, "HEAD", "/", host="x")
        assert (head.body, head.header("content-length")) == (b"", "11")
        assert (await request(stream, "DELETE", "/", host="x", body=b"b")).body == b"DELETE / {}  b"


async def test_calls_over_mutual_tls() -> None:
    context = client_context(credentials(NodeIdentity("shop.example", "web-1")))
    async with serving(server_context(), serve) as server, await dial(server, context) as channel:
        for _ in range(2):
            response = await request(channel, "POST", "/v1/sign", host="centre", body=b"x" * MAX)
            assert response.body == b"POST /v1/sign {}  " + b"x" * MAX
        # A refused body is larger than what the sockets hold, and yet the answer is read.
        response = await request(channel, "POST", "/v1/sign", host="centre", body=b"x" * 2**22)
        assert (response.status, response.last) == (413, True)


async def test_the_server_can_end_the_connection() -> None:
    async def bye(request: Request) -> Response:
        return Response(200, b"bye", last=True)

    async with client(bye) as stream:
        response = await request(stream, "GET", "/", host="x")
        assert (response.body, response.last) == (b"bye", True)
        assert await stream.receive_some() == b""
        with pytest.raises(HttpError, match=r"without an answer|broke before the answer"):
            await request(stream, "GET", "/", host="x")


async def test_the_client_can_end_the_connection() -> None:
    async with client() as stream:
        response = await request(stream, "GET", "/", host="x", headers=[("Connection", "close")])
        assert response.last
        assert await stream.receive_some() == b""


@pytest.mark.parametrize("size", [1, 7, 10**6])
async def test_however_the_bytes_come(size: int) -> None:
    chunked = b"POST /b HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n"
    last = b"POST /c HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\nef"
    data = GET + GET + chunked + last
    async with client() as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            for at in range(0, len(data), size):
                await stream.send_all(data[at : at + size])

        nursery.start_soon(send)
        answer = await said(stream)
    bodies = [part.partition(b"\r\n\r\n")[2] for part in answer.split(b"HTTP/1.1 200 \r\n")[1:]]
    assert bodies == [b"GET /a {'b': 'c'}  ", b"GET /a {'b': 'c'}  ", b"POST /b {}  abcd", b"POST /c {}  ef"]


async def test_old_clients_get_one_answer() -> None:
    async with client() as stream:
        await stream.send_all(b"GET /a HTTP/1.0\r\n\r\n")
        assert (await said(stream)).endswith(b"GET /a {}  ")


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async with client() as stream:
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
        await stream.send_all(head)
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 100 ")
        await stream.send_all(b"body")
        assert (await stream.receive_some()).endswith(b"body")
        await stream.send_all(head.replace(b" 4\r\n", b" 9999\r\n"))
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 413 ")


async def test_what_the_handler_raises_is_answered_and_raised() -> None:
    async def fail(request: Request) -> Response:
        raise trio.BrokenResourceError("of its own") if request.path == "/broken" else ZeroDivisionError

    for path, kind in (("/", ZeroDivisionError), ("/broken", trio.BrokenResourceError)):
        here, there = trio.testing.memory_stream_pair()
        await here.send_all(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
        with pytest.raises(kind):
            await serve(there, fail)
        await there.aclose()
        assert (await said(here)).startswith(b"HTTP/1.1 500 ")


# Going on in another protocol


async def test_an_upgrade_hands_the_stream_over() -> None:
    heard: list[bytes] = []

    async def talk(stream: Stream, first: bytes) -> None:
        heard.append(first)
        await stream.send_all(b"welcome")
        heard.append(await stream.receive_some())

    async def handler(request: Request) -> Response:
        assert request.upgrade == "culvert"
        return Response(101, headers=[("X-Test", "t")], upgrade=talk)

    async with client(handler) as stream:
        response, early = await upgrade(stream, "/v1/session", host="x", protocol="culvert")
        assert (response.status, response.header("x-test")) == (101, "t")
        assert response.header("upgrade") == "culvert"
        while early != b"welcome":
            early += await stream.receive_some()
        await stream.send_all(b"thanks")
        assert await stream.receive_some() == b""
    assert heard == [b"", b"thanks"]


async def test_what_was_said_too_early_is_kept() -> None:
    heard: list[bytes] = []

    async def talk(stream: Stream, first: bytes) -> None:
        heard.append(first)

    async def handler(request: Request) -> Response:
        return Response(101, upgrade=talk)

    async with client(handler) as stream:
        ask = b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: culvert\r\nConnection: Upgrade\r\n\r\n"
        await stream.send_all(ask + b"first words")
        await said(stream)
    assert heard == [b"first words"]


async def test_an_upgrade_can_be_refused_and_the_stream_used_on() -> None:
    async with client() as stream:
        response, early = await upgrade(stream, "/a", host="x", protocol="culvert")
        assert (response.status, early) == (200, b"")
        assert (await request(stream, "GET", "/b", host="x")).body == b"GET /b {}  "


async def test_an_upgrade_takes_both_headers() -> None:
    async def handler(request: Request) -> Response:
        return Response(200, request.upgrade.encode())

    async with client(handler) as stream:
        assert (await request(stream, "GET", "/", host="x", headers=[("Upgrade", "culvert")])).body == b""


# Clients that do not behave


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"GET /" + b"a" * MAX_HEADER + b" HTTP/1.1\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * MAX_HEADER, 431),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (MAX + 1), 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n7d0\r\n" + b"x" * 2000, 413),
        (GET + b"\r\nnonsense\r\n\r\n", 400),
    ],
)
@pytest.mark.parametrize("size", [1, 10**6])
async def test_nonsense_and_excess_are_answered_and_end_the_connection(data: bytes, status: int, size: int) -> None:
    async with client() as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            with contextlib.suppress(trio.BrokenResourceError):
                for at in range(0, len(data), size):
                    await stream.send_all(data[at : at + size])

        nursery.start_soon(send)
        answer = bytearray()
        while data_in := await stream.receive_some():
            answer += data_in
        nursery.cancel_scope.cancel()
    if data.startswith(GET):
        answer = answer[answer.index(b"HTTP/1.1", 1) :]
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"\r\nConnection: close\r\n" in answer


async def test_too_large_a_body_is_not_read() -> None:
    """Refused by its announcement; the rest is swallowed, for a moment and a bounded amount, so that the client can
    read why instead of finding the connection reset."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def serve_one(stream: Stream) -> None:
        async with stream:
            await serve(stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(trio.serve_listeners, serve_one, [listener]))
        with trio.fail_after(5):
            async with await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]) as stream:
                response = await request(stream, "POST", "/", host="x", body=b"x" * 150_000)
                assert response.status == 413
                assert response.body == b"the body is too large; at most 1000 bytes are read\n"
        nursery.cancel_scope.cancel()


async def drip(stream: Stream, data: bytes, seconds: float) -> None:
    """One byte at a time, until the other end has had enough."""
    with contextlib.suppress(trio.BrokenResourceError):
        for n in range(len(data)):
            await stream.send_all(data[n : n + 1])
            await trio.sleep(seconds)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 900\r\n\r\n" + b"x" * 900,
    ],
    ids=["header", "body"],
)
async def test_a_request_that_drips_is_cut(data: bytes, autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    async with client() as stream, trio.open_nursery() as nursery:
        nursery.start_soon(drip, stream, data, 1)
        assert (await said(stream)).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - began == pytest.approx(10, abs=0.5)
        nursery.cancel_scope.cancel()


async def test_a_request_that_flows_is_given_its_time(autojump_clock: trio.testing.MockClock) -> None:
    here, there = trio.testing.memory_stream_pair()
    body = b"x" * 2**20
    async with trio.open_nursery() as nursery:
        nursery.start_soon(functools.partial(serve_connection, there, mirror, max_body=2**20, header_timeout=1))
        await here.send_all(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body))
        for at in range(0, len(body), 2**16):  # 128 KiB a second: eight seconds
            await here.send_all(body[at : at + 2**16])
            await trio.sleep(0.5)
        assert (await here.receive_some()).startswith(b"HTTP/1.1 200 ")
        nursery.cancel_scope.cancel()


async def test_silence_ends_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with client() as stream:
        for _ in range(2):
            began = trio.current_time()
            await trio.sleep(59)
            await request(stream, "GET", "/", host="x")
        began = trio.current_time()
        assert await stream.receive_some() == b""
        assert trio.current_time() - began == pytest.approx(60)


async def test_a_client_that_does_not_read_is_cut(autojump_clock: trio.testing.MockClock) -> None:
    async def much(request: Request) -> Response:
        return Response(200, bytes(2**18))

    here, there = trio.testing.lockstep_stream_pair()
    await_end = trio.Event()

    async def run() -> None:
        await serve(there, much)
        await_end.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        began = trio.current_time()
        await here.send_all(GET)
        await await_end.wait()
        assert trio.current_time() - began == pytest.approx(10 + 16, abs=0.1)


@pytest.mark.parametrize("cut", range(0, len(GET), 3))
async def test_a_client_that_goes_leaves_quietly(cut: int) -> None:
    async with client() as stream:
        await stream.send_all(GET[:cut])
    async with client() as stream:
        await stream.send_all(GET[:cut])
        await stream.send_eof()
        answer = await said(stream)
        assert answer.startswith(b"HTTP/1.1 400 ") if cut else answer == b""


fragments = st.sampled_from(
    [
        GET,
        b"POST / HTTP/1.1\r\nHost: x\r\n",
        b"Content-Length: 5\r\n",
        b"Content-Length: 99999\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Connection: close\r\n",
        b"Connection: upgrade\r\nUpgrade: culvert\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"hello",
        b"HEAD / HTTP/1.0\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
)


@given(st.lists(st.one_of(fragments, st.binary(max_size=40)), max_size=12), st.integers(1, 200), st.booleans())
@example([b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: culvert\r\nConnection: upgrade\r\n\r\n", GET], 7, False)
@example([b"GET / HTTP/1.0\r\nHost: x\r\nUpgrade: culvert\r\nConnection: upgrade\r\n\r\n", GET], 7, True)
@settings(max_examples=300, deadline=None)
def test_no_bytes_whatever_crash_the_server(parts: list[bytes], size: int, ends: bool) -> None:
    """It ends by itself, raises nothing, and what it says is HTTP."""
    data = b"".join(parts)

    async def greet(stream: Stream, first: bytes) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(b"welcome" + first)

    async def handler(request: Request) -> Response:
        wants = request.upgrade == "culvert"
        return Response(101, upgrade=greet) if wants else await mirror(request)

    async def main() -> None:
        async with client(handler) as stream:
            for at in range(0, len(data), size):
                with contextlib.suppress(trio.BrokenResourceError):
                    await stream.send_all(data[at : at + size])
            if ends:
                await stream.send_eof()
            answer = await said(stream)
            assert not answer or answer.startswith(b"HTTP/1.1 ")

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# Servers that do not behave


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (b"", "ended the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "is no HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", "is no HTTP: .* without sending complete"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\n", "said more than it was asked"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX + 1), "larger than 1000 bytes"),
        (b"HTTP/1.1 101 Go on\r\nUpgrade: x\r\n\r\n", "is no HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_HEADER, "is no HTTP: Receive buffer too long"),
    ],
)
async def test_answers_that_are_none(answer: bytes, what: str) -> None:
    here, there = trio.testing.memory_stream_pair()
    await there.send_all(answer)
    await there.aclose()
    with pytest.raises(HttpError, match=what):
        await request(here, "GET", "/", host="x", max_body=MAX)


async def test_an_answer_that_ends_with_the_connection_is_the_last() -> None:
    here, there = trio.testing.memory_stream_pair()
    await there.send_all(b"HTTP/1.1 103 Early\r\n\r\nHTTP/1.0 200 OK\r\n\r\nold")
    await there.aclose()
    response = await request(here, "GET", "/", host="x")
    assert (response.body, response.last) == (b"old", True)


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=100, deadline=None)
def test_no_bytes_whatever_crash_a_client(data: bytes, http: bool) -> None:
    async def main() -> None:
        here, there = trio.testing.memory_stream_pair()
        await there.send_all(b"HTTP/1.1 200 OK\r\n" + data if http else data)
        await there.aclose()
        with contextlib.suppress(HttpError):
            assert 200 <= (await request(here, "GET", "/", host="x")).status < 1000

    trio.run(main)


async def test_a_wish_that_is_no_http_is_our_own_fault() -> None:
    wishes: list[Callable[[Stream], Awaitable[object]]] = [
        lambda s: request(s, "GET", "/ HTTP/1.1\r\nEvil: yes", host="x"),
        lambda s: request(s, "GET", "/", host="x", headers=[("A", "b\r\nEvil: yes")]),
    ]
    for wish in wishes:
        here, _ = trio.testing.memory_stream_pair()
        with pytest.raises(Exception, match=r"(?i)illegal"):
            await wish(here)
