"""Calling the centre: what agents and the operators' commands use.

A Client opens a connection for each call and never tries again by itself: whoever calls knows whether a second try
makes sense. What goes wrong is a ClientError with a message for people, and a Refusal when it was the centre that said
no; everything below (sockets, TLS, HTTP) stops here.
"""

import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import msgspec
import trio
from OpenSSL import SSL

from ca import endpoint, http, possession, tls, x509
from ca.channel import Channel, ChannelError, connect
from ca.contract import (
    CENTRE_FRAMES,
    NODE_FRAMES,
    TIME_HEADER,
    VERSION,
    VERSION_HEADER,
    ApplyRequest,
    ApplyResponse,
    AskRequest,
    AskResponse,
    ContractError,
    DeleteRequest,
    FoundRequest,
    FoundResponse,
    JoinRequest,
    JoinResponse,
    LabelRequest,
    Listing,
    Problem,
    RecoverRequest,
    SignRequest,
    SignResponse,
    Status,
    Time,
    TokenRequest,
    TokenResponse,
    TrustStatus,
    check_version,
)
from ca.credential import Credential
from ca.frames import FramesEnded, FrameStream, node_side
from ca.identity import CentralIdentity, Identity
from ca.tokens import JoinToken

R = TypeVar("R", bound=msgspec.Struct)
Dial = Callable[[], AbstractAsyncContextManager[trio.abc.Stream]]

Timed = Callable[[float, float, float], None]
"""(the centre's time, unix seconds; when we asked and when we heard, seconds since boot)"""

Body = msgspec.Struct | Callable[[trio.abc.Stream], msgspec.Struct] | None
"""What a call says; a function where that depends on the connection."""

CALL_WITHIN = 30.0
"""Seconds for one call, connecting included."""

MAX_ANSWER = 2**28
"""Bytes of an answer: the centre is trusted, and 100,000 workloads in one listing are some 30 million."""

_HEADERS = ((VERSION_HEADER, VERSION), ("Content-Type", "application/json"))


class ClientError(Exception):
    """The call came to nothing; the message says why. The centre may be away: nothing is known to have changed, and
    nothing is known not to have."""


class Refusal(ClientError):
    """The centre said no; `problem` is what it said."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.message)
        self.status = status
        self.problem = problem


class Client:
    """Calls one centre. `dial` opens a connection, `address` names it in messages. `timed` hears the centre's time with
    each answer."""

    def __init__(self, dial: Dial, address: str, *, timeout: float = CALL_WITHIN, timed: Timed | None = None) -> None:
        self._dial = dial
        self.address = address
        self._timeout = timeout
        self._timed = timed

    @classmethod
    def of_operator(cls, credential: Credential) -> "Client":
        """As the operator whose credential it is."""
        return cls.over_tls(
            credential.address,
            credential.trust_domain,
            credential.roots.encode(),
            (credential.chain.encode(), credential.key.encode()),
        )

    @classmethod
    def over_tls(
        cls,
        address: str,
        trust_domain: str,
        roots: bytes,
        credentials: tuple[bytes, bytes] | None,
        *,
        timed: Timed | None = None,
    ) -> "Client":
        """With a certificate: `credentials` are PEM chain and key, `roots` PEM, `address` HOST:PORT. ValueError for an
        address that is none. Without one (None) only `recover` is answered."""
        return cls(
            _dialling(address, trust_domain, lambda: tls.context(x509.load_chain(roots), credentials, server=False)),
            address,
            timed=timed,
        )

    @classmethod
    def asking_time(cls, address: str, trust_domain: str, roots: bytes, timed: Timed) -> "Client":
        """Without a certificate, and whatever the dates on the centre's: for `time` only."""
        return cls(
            _dialling(address, trust_domain, lambda: tls.timeless_context(x509.load_chain(roots))), address, timed=timed
        )

    @classmethod
    def joining(cls, token: JoinToken) -> "Client":
        """Without a certificate, trusting the one root that the token names: for `join` only."""
        host, port = endpoint.split(token.address)

        @contextlib.asynccontextmanager
        async def open_channel() -> AsyncIterator[Channel]:
            async with await connect(host, port, tls.pinned_context(token.root), expect=CentralIdentity) as channel:
                yield channel

        return cls(open_channel, token.address)

    @classmethod
    def at_socket(cls, path: Path) -> "Client":
        """As root at the centre's own machine."""

        @contextlib.asynccontextmanager
        async def open_socket() -> AsyncIterator[trio.abc.Stream]:
            async with await trio.open_unix_socket(path) as stream:
                yield stream

        return cls(open_socket, str(path))

    async def reachable(self) -> bool:
        """Whether somebody takes a connection there."""
        try:
            with trio.fail_after(self._timeout):
                async with self._dial():
                    return True
        except (OSError, ChannelError, trio.TooSlowError):
            return False

    async def join(self, request: JoinRequest) -> JoinResponse:
        """Turn a token into a node's certificate."""
        return await self._call("POST", "/v1/join", request, JoinResponse)

    async def renew(self, csr: str) -> SignResponse:
        """A node's next certificate."""
        return await self._call("POST", "/v1/renew", SignRequest(csr), SignResponse)

    async def recover(self, chain: str, key: str, csr: str) -> SignResponse:
        """A node's next certificate, when the last one (`chain` and `key`, PEM) has ended. The client must be one
        without a certificate: TLS refuses an ended one."""
        old = x509.load_key(key.encode())

        def request(stream: trio.abc.Stream) -> RecoverRequest:
            assert isinstance(stream, Channel)
            return RecoverRequest(chain, csr, possession.prove(old, csr, stream.binding))

        return await self._call("POST", "/v1/recover", request, SignResponse)

    async def sign(self, csr: str) -> SignResponse:
        """A certificate for a workload of this node."""
        return await self._call("POST", "/v1/sign", SignRequest(csr), SignResponse)

    async def found(self, request: FoundRequest) -> FoundResponse:
        """Have what this node found registered."""
        return await self._call("POST", "/v1/found", request, FoundResponse)

    async def sign_operator(self, csr: str) -> SignResponse:
        """A certificate for an operator; only at the centre's own socket."""
        return await self._call("POST", "/v1/operators", SignRequest(csr), SignResponse)

    async def create_token(self, request: TokenRequest) -> TokenResponse:
        """A join token."""
        return await self._call("POST", "/v1/tokens", request, TokenResponse)

    async def apply(self, request: ApplyRequest) -> ApplyResponse:
        """Put objects."""
        return await self._call("POST", "/v1/apply", request, ApplyResponse)

    async def delete(self, request: DeleteRequest) -> ApplyResponse:
        """Delete objects."""
        return await self._call("POST", "/v1/delete", request, ApplyResponse)

    async def label(self, request: LabelRequest) -> ApplyResponse:
        """Set and remove labels."""
        return await self._call("POST", "/v1/label", request, ApplyResponse)

    async def list(self, kind: str, namespace: str = "", name: str = "") -> Listing:
        """Objects; what is empty is not narrowed by."""
        query = {k: v for k, v in (("kind", kind), ("namespace", namespace), ("name", name)) if v}
        return await self._call("GET", f"/v1/resources?{urlencode(query)}", None, Listing)

    async def ask(self, node: str, topic: str) -> AskResponse:
        """What a node answers about itself."""
        return await self._call("POST", "/v1/ask", AskRequest(node, topic), AskResponse)

    async def time(self) -> Time:
        """The centre's."""
        return await self._call("GET", "/v1/time", None, Time)

    async def status(self) -> Status:
        """Every node, and how far it is."""
        return await self._call("GET", "/v1/status", None, Status)

    async def trust(self, limit: int) -> TrustStatus:
        """Which certificates end when: those that end first, `limit` of them, and how many there are."""
        return await self._call("GET", f"/v1/trust?limit={limit}", None, TrustStatus)

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator["Session"]:
        """A session of the node, open until the end of the block; the first frame to send is Hello."""
        async with contextlib.AsyncExitStack() as stack:
            with self._translated(), trio.fail_after(self._timeout):
                stream = await stack.enter_async_context(self._dial())
                sent = boot_time()
                response, early = await http.upgrade(
                    stream, "/v1/session", host=self.address, protocol="culvert", headers=_HEADERS
                )
            self._hear_time(response, sent)
            if response.status != 101:
                raise self._refusal(response)
            yield Session(node_side(stream, early), self.address)

    async def _call(self, method: str, target: str, body: Body, answer: type[R]) -> R:
        with self._translated(), trio.fail_after(self._timeout):
            async with self._dial() as stream:
                said = body(stream) if callable(body) else body
                data = b"" if said is None else msgspec.json.encode(said)
                sent = boot_time()
                response = await http.request(
                    stream, method, target, host=self.address, headers=_HEADERS, body=data, max_body=MAX_ANSWER
                )
                self._hear_time(response, sent)
        if response.status != 200:
            raise self._refusal(response)
        try:
            check_version(response.header(VERSION_HEADER))
            return msgspec.json.decode(response.body, type=answer)
        except (ContractError, msgspec.MsgspecError) as e:
            raise ClientError(f"the centre at {self.address} answers what we do not understand: {e}") from e

    def _hear_time(self, response: http.Response, sent: float) -> None:
        said = response.header(TIME_HEADER)
        if self._timed and re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,9})?", said):
            self._timed(float(said), sent, boot_time())

    def _refusal(self, response: http.Response) -> ClientError:
        try:
            problem = msgspec.json.decode(response.body, type=Problem)
        except msgspec.MsgspecError:
            said = response.body[:500].decode("utf-8", "replace").strip()
            problem = Problem(f"the centre at {self.address} answered {response.status}: {said}", "http")
        return Refusal(response.status, problem)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ChannelError as e:
            raise ClientError(f"the centre cannot be called: {e}") from e
        except trio.TooSlowError as e:
            raise ClientError(f"the centre at {self.address} did not answer within {self._timeout:g} s") from e
        except (http.HttpError, OSError, trio.BrokenResourceError) as e:
            raise ClientError(f"the centre at {self.address} cannot be called: {e}") from e


def boot_time() -> float:
    """Seconds since boot, suspended ones included: the clock that nobody sets."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _dialling(address: str, trust_domain: str, context: Callable[[], SSL.Context]) -> Dial:
    """Connections to the centre of that trust domain."""
    host, port = endpoint.split(address)

    def expected(peer: Identity) -> bool:
        return isinstance(peer, CentralIdentity) and peer.trust_domain == trust_domain

    @contextlib.asynccontextmanager
    async def open_channel() -> AsyncIterator[Channel]:
        async with await connect(host, port, context(), expect=expected) as channel:
            yield channel

    return open_channel


class Session:
    """The node's side of a session. One task may send while another receives; both end with `Client.session`."""

    def __init__(self, frames: FrameStream[CENTRE_FRAMES], address: str) -> None:
        self._frames = frames
        self._address = address
        self._sending = trio.Lock()

    async def send(self, frame: NODE_FRAMES) -> None:
        """Say something; any number of tasks may. ClientError when the session is over."""
        async with self._sending:
            try:
                await self._frames.send(frame)
            except FramesEnded as e:
                raise self._ended(e) from e

    async def receive(self) -> CENTRE_FRAMES:
        """The centre's next frame. ClientError when the session is over."""
        try:
            return await self._frames.receive()
        except (FramesEnded, ContractError) as e:
            raise self._ended(e) from e

    def _ended(self, e: Exception) -> ClientError:
        return ClientError(f"the session with the centre at {self._address} is over: {e}")
