"""HTTP/1.1 with h11 over any trio stream, both sides. Reads hostile bytes.

For small calls: a body is one `bytes` on either side. The stream is the caller's: it opens and closes it, and its
bounds are the only ones on the number of connections; here is bounded what one of them may cost, in bytes and seconds.

Every wait for the peer ends: the first byte of a request within the idle timeout, its header within the header timeout,
bodies (either way) at MIN_RATE or better. Cancellation leaves the stream where it was, to be closed.
"""

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl

import h11
import trio

MAX_HEADER = 2**14
"""Bytes of a request or status line with its header fields."""

MAX_BODY = 16 * 2**20
"""Bytes of a body, unless the caller says otherwise."""

MIN_RATE = 2**14
"""Bytes per second below which a body is taken for an attack."""

PIECE = 2**16
LINGER_SECONDS, LINGER_BYTES = 1.0, 2**18
"""How long, and for how much, a refused peer is listened to so that it can read why: a socket closed with unread bytes
sends a reset, which overtakes the answer."""

Headers = Sequence[tuple[str, str]]
Upgraded = Callable[[trio.abc.Stream, bytes], Awaitable[None]]
"""(stream, what the peer has already said in the new protocol); the connection ends when it returns."""


class HttpError(Exception):
    """The peer broke the connection, or HTTP; the message says how."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request, body included. Names of headers are in lower case."""

    method: str
    target: str
    headers: Headers = ()
    body: bytes = b""

    @property
    def path(self) -> str:
        """The target up to its query."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> dict[str, str]:
        """The target's parameters; of equal names the last."""
        return dict(parse_qsl(self.target.partition("?")[2], keep_blank_values=True))

    def header(self, name: str) -> str:
        """The value of a header, given in lower case; the first of several, empty if there is none."""
        return _header(self.headers, name)

    @property
    def upgrade(self) -> str:
        """The protocol that the client would rather speak; empty if none."""
        wanted = {t.strip().lower() for k, v in self.headers if k == "connection" for t in v.split(",")}
        return self.header("upgrade") if "upgrade" in wanted else ""


@dataclass(frozen=True, slots=True)
class Response:
    """One response. `last` says that the server closes the connection after it. With `upgrade`, which needs status 101,
    a handler takes the connection over for the protocol that `Request.upgrade` names."""

    status: int
    body: bytes = b""
    headers: Headers = ()
    last: bool = False
    upgrade: Upgraded | None = None

    def header(self, name: str) -> str:
        """The value of a header, given in lower case; the first of several, empty if there is none."""
        return _header(self.headers, name)


Handler = Callable[[Request], Awaitable[Response]]


async def serve_connection(
    stream: trio.abc.Stream,
    handler: Handler,
    *,
    max_body: int = MAX_BODY,
    header_timeout: float = 10.0,
    idle_timeout: float = 60.0,
    refused: Callable[[int, str], None] = lambda status, why: None,
) -> None:
    """Answer the requests on one connection, one after another, until either side ends it; the caller then closes the
    stream. What the peer does wrong is answered and ends the connection, nothing is raised for it; `refused` is told
    status and reason. What `handler` raises is answered with 500 and raised; what an upgrade raises is raised."""
    await _Server(stream, handler, max_body, header_timeout, idle_timeout, refused).run()


async def request(
    stream: trio.abc.Stream,
    method: str,
    target: str,
    *,
    host: str,
    body: bytes = b"",
    headers: Headers = (),
    max_body: int = MAX_BODY,
) -> Response:
    """Make one call. The stream can be used for the next, unless the response is the `last`, or after an HttpError or a
    cancellation. The caller bounds the time."""
    fields = [("Host", host), *headers]
    if body or method in ("POST", "PUT", "PATCH"):
        fields.append(("Content-Length", str(len(body))))
    client = _Client(stream, max_body)
    await client.send(method, target, fields, body)
    response = await client.response()
    if client.connection.trailing_data[0]:
        raise HttpError("the server said more than it was asked")
    return response


async def upgrade(
    stream: trio.abc.Stream, target: str, *, host: str, protocol: str, headers: Headers = ()
) -> tuple[Response, bytes]:
    """Ask to go on in another protocol. With status 101 the stream now speaks it, and the bytes are what the server has
    already said in it; any other status is a refusal, and the stream as after `request`."""
    client = _Client(stream, MAX_BODY)
    await client.send("GET", target, [("Host", host), ("Upgrade", protocol), ("Connection", "upgrade"), *headers], b"")
    response = await client.response()
    return response, client.connection.trailing_data[0]


class _Refused(Exception):
    """The request is answered with this status, and the connection ends."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Gone(Exception):
    """The peer broke the connection, or does not read its response."""


class _Server:
    def __init__(
        self,
        stream: trio.abc.Stream,
        handler: Handler,
        max_body: int,
        header_timeout: float,
        idle_timeout: float,
        refused: Callable[[int, str], None],
    ) -> None:
        self._stream = stream
        self._handler = handler
        self._max_body = max_body
        self._header_timeout = header_timeout
        self._idle_timeout = idle_timeout
        self._refused = refused
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEADER)

    async def run(self) -> None:
        with contextlib.suppress(_Gone):
            while await self._turn():
                self._connection.start_next_cycle()

    async def _turn(self) -> bool:
        """One request and its response; False when it was the last."""
        try:
            request = await self._request()
        except h11.RemoteProtocolError as error:
            self._refused(error.error_status_hint, str(error))
            await self._refuse(error.error_status_hint, str(error))
            return False
        except _Refused as refused:
            self._refused(refused.status, str(refused))
            await self._refuse(refused.status, str(refused))
            return False
        if request is None:
            return False
        try:
            response = await self._handler(request)
        except Exception:
            with contextlib.suppress(_Gone):
                await self._refuse(500, "the server failed; its log says more")
            raise
        if response.upgrade is not None:
            await self._switch(request, response, response.upgrade)
            return False
        await self._respond(response, with_body=request.method != "HEAD")
        return self._connection.our_state is h11.DONE and self._connection.their_state is h11.DONE

    async def _request(self) -> Request | None:
        """The next request, or None when the peer has no more."""
        if not self._connection.trailing_data[0]:
            with trio.move_on_after(self._idle_timeout) as idle:
                await self._receive()
            if idle.cancelled_caught:
                return None
        with trio.move_on_after(self._header_timeout) as limit:
            head = await self._event()
            if isinstance(head, h11.ConnectionClosed):
                return None
            assert isinstance(head, h11.Request)
            headers = _decoded(head.headers)
            if head.method == b"CONNECT":
                raise _Refused(405, "this is no proxy")
            if int(_header(headers, "content-length") or 0) > self._max_body:
                raise self._too_much()
            return Request(head.method.decode(), head.target.decode(), headers, await self._body(limit))
        raise _Refused(408, "the request did not arrive in time")

    async def _body(self, limit: trio.CancelScope) -> bytes:
        body = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
            limit.deadline += len(event.data) / MIN_RATE
            if len(body) > self._max_body:
                raise self._too_much()
        return bytes(body)

    def _too_much(self) -> _Refused:
        return _Refused(413, f"the body is too large; at most {self._max_body} bytes are read")

    async def _event(self) -> object:
        while (event := self._connection.next_event()) is h11.NEED_DATA:
            if self._connection.they_are_waiting_for_100_continue:
                await self._send(h11.InformationalResponse(status_code=100, headers=[]))
            await self._receive()
        return event

    async def _receive(self) -> None:
        try:
            data = await self._stream.receive_some(PIECE)
        except trio.BrokenResourceError as error:
            raise _Gone from error
        self._connection.receive_data(bytes(data))

    async def _respond(self, response: Response, *, with_body: bool = True) -> None:
        fields = [*response.headers, ("Content-Length", str(len(response.body)))]
        if response.last:
            fields.append(("Connection", "close"))
        events: list[h11.Event] = [h11.Response(status_code=response.status, headers=_encoded(fields))]
        if with_body:
            events.append(h11.Data(data=response.body))
        await self._send(*events, h11.EndOfMessage())

    async def _switch(self, request: Request, response: Response, upgraded: Upgraded) -> None:
        fields = [("Upgrade", request.upgrade), ("Connection", "upgrade"), *response.headers]
        await self._send(h11.InformationalResponse(status_code=101, headers=_encoded(fields)))
        await upgraded(self._stream, self._connection.trailing_data[0])

    async def _send(self, *events: h11.Event) -> None:
        data = b"".join(self._connection.send(e) or b"" for e in events)
        with trio.move_on_after(self._header_timeout + len(data) / MIN_RATE) as limit:
            try:
                await self._stream.send_all(data)
            except trio.BrokenResourceError as error:
                raise _Gone from error
        if limit.cancelled_caught:
            raise _Gone

    async def _refuse(self, status: int, message: str) -> None:
        """Say no, and see that it can be heard."""
        heard_all = self._connection.their_state is h11.DONE
        text = [("Content-Type", "text/plain; charset=utf-8")]
        await self._respond(Response(status, f"{message}\n".encode(), text, last=True))
        if heard_all:
            return
        left = LINGER_BYTES
        with trio.move_on_after(LINGER_SECONDS), contextlib.suppress(trio.BrokenResourceError):
            if isinstance(self._stream, trio.abc.HalfCloseableStream):
                await self._stream.send_eof()
            while left > 0 and (data := await self._stream.receive_some(PIECE)):
                left -= len(data)


class _Client:
    """One call."""

    def __init__(self, stream: trio.abc.Stream, max_body: int) -> None:
        self._stream = stream
        self._max_body = max_body
        self._unsent: trio.BrokenResourceError | None = None
        self._heard = False
        self.connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEADER)

    async def send(self, method: str, target: str, fields: Headers, body: bytes) -> None:
        head = h11.Request(method=method, target=target, headers=_encoded(fields))
        events: tuple[h11.Event, ...] = (head, h11.Data(data=body), h11.EndOfMessage())
        data = b"".join(self.connection.send(e) or b"" for e in events)
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError as error:
            self._unsent = error  # a server that refuses early has answered all the same: read why

    async def response(self) -> Response:
        try:
            return await self._response()
        except h11.RemoteProtocolError as error:
            if not self._heard:
                raise HttpError("the server ended the connection without an answer") from error
            raise HttpError(f"the server's answer is no HTTP: {error}") from error
        except trio.BrokenResourceError as error:
            raise HttpError(f"the connection broke before the answer: {self._unsent or error}") from error

    async def _response(self) -> Response:
        while isinstance(head := await self._event(), h11.InformationalResponse):
            if head.status_code == 101:
                return Response(101, headers=_decoded(head.headers))
        assert isinstance(head, h11.Response)
        body = bytearray()
        while isinstance(event := await self._event(), h11.Data):
            body += event.data
            if len(body) > self._max_body:
                raise HttpError(f"the server's answer is larger than {self._max_body} bytes")
        last = self.connection.our_state is h11.MUST_CLOSE or self._unsent is not None
        return Response(head.status_code, bytes(body), _decoded(head.headers), last=last)

    async def _event(self) -> object:
        while (event := self.connection.next_event()) is h11.NEED_DATA:
            data = await self._stream.receive_some(PIECE)
            self._heard = self._heard or bool(data)
            self.connection.receive_data(bytes(data))
        return event


def _header(headers: Headers, name: str) -> str:
    return next((v for k, v in headers if k == name), "")


def _decoded(headers: Sequence[tuple[bytes, bytes]]) -> Headers:
    return tuple((k.decode("latin-1"), v.decode("latin-1")) for k, v in headers)


def _encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(k.encode("latin-1"), v.encode("latin-1")) for k, v in headers]
