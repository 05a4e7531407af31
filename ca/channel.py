"""The TLS machine on a socket: one authenticated connection as a trio stream. Reads hostile bytes.

Who closes: the owner of a Channel closes it (`aclose`, or `async with`), and with it the stream below. `receive_some`
gives b"" only after the peer's TLS goodbye; a connection that just stops is a ChannelError, since a cut cannot be told
from an attack. TLS 1.3 has half-close, we do not use it: who closes gives up what the peer still sends.

Cancellation: a cancelled `send_all` leaves a record half-sent, so that nothing can be sent after it (ChannelError); a
cancelled `receive_some` loses nothing. After a cancelled or failed handshake the channel can only be closed.

Memory: at most PIECE bytes are encrypted ahead of the socket, and PIECE bytes wait to be decrypted after it, whatever
the size of what is sent or offered.
"""

import contextlib
import os
import socket
from collections.abc import Callable

import trio
from cryptography.x509 import Certificate
from OpenSSL import SSL

from ca import tls, x509
from ca.identity import Identity

PIECE = 2**16
"""Bytes moved at once: four TLS records. Calls to the centre are small; bulk traffic has a data path of its own."""

RECORD = 2**14
"""Bytes of plaintext in one TLS record, at most."""

HANDSHAKE_TIMEOUT = 10.0
"""Seconds a handshake may take, everything included: some 200 times what it needs across a continent."""

FAREWELL = 1.0
"""Seconds spent on telling the peer why, or goodbye. It is a courtesy, and must not be a way to hold us up."""

Expected = Callable[[Identity], bool] | type[Identity]
"""Which peers are wanted: a class of identities, or a function of one."""


class ChannelError(trio.BrokenResourceError):
    """The connection is not, or no longer, a channel to the peer that was wanted; the message says why and what it
    probably means."""


class Channel(trio.abc.Stream):
    """TLS over `transport`; `handshake` comes first. `expect` says which peers are wanted (None: any of the mesh).

    One task may send and another receive at the same time, as with any trio stream.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        context: SSL.Context,
        *,
        server: bool,
        expect: Expected | None = None,
        timeout: float = HANDSHAKE_TIMEOUT,
    ) -> None:
        self._transport = transport
        self._machine = tls.Machine(context, server=server)
        self._expect = expect
        self._timeout = timeout
        self._flushing = trio.Lock()
        self._sending = self._receiving = self._closed = False
        self._broken: str | None = "the handshake was not done"
        self._buffer = bytearray()
        self._peer: Identity | None = None

    @property
    def peer(self) -> Identity | None:
        """Who the peer proved to be; None before the handshake, and for a client without certificate where the context
        allows one."""
        return self._peer

    @property
    def peer_certificate(self) -> Certificate | None:
        """The certificate the peer proved itself with."""
        return self._machine.peer_certificate

    @property
    def binding(self) -> bytes:
        """What ties a signature to this one connection, after the handshake."""
        return self._machine.binding

    async def handshake(self) -> None:
        """Agree on keys and learn who the peer is. ChannelError if it is nobody, somebody else than expected, too slow,
        or does not speak TLS 1.3. A peer that is told no gets its TLS alert.

        A client's handshake may succeed although the server refuses its certificate: TLS 1.3 tells the client with the
        first thing it receives.
        """
        refusal: tls.TlsError | None = None
        with trio.move_on_after(self._timeout) as scope:
            try:
                await self._agree()
            except tls.TlsError as error:
                refusal = error
            except trio.BrokenResourceError as error:
                raise ChannelError(f"the peer cut the TLS handshake off ({error})") from error
        if refusal is not None:
            await self._farewell()
            raise ChannelError(_explained(str(refusal))) from refusal
        if scope.cancelled_caught:
            raise ChannelError(f"the TLS handshake was not done after {self._timeout:g} s: is the peer a Culvert?")
        try:
            self._peer = self._identify()
        except ChannelError as error:
            self._broken = str(error)
            self._machine.close()
            await self._farewell()
            raise
        self._buffer = bytearray(RECORD)
        self._broken = None

    async def _agree(self) -> None:
        while not self._machine.handshake():
            await self._flush()
            data = await self._transport.receive_some(PIECE)
            if not data:
                raise tls.TlsError("the peer ended the connection during the TLS handshake")
            self._machine.feed(data)
        await self._flush()

    def _identify(self) -> Identity | None:
        certificate = self._machine.peer_certificate
        if certificate is None:
            # Only a server whose context says so gets here; `expect` then judges nobody, which it cannot like.
            if self._expect is None:
                return None
            raise ChannelError("the peer showed no certificate")
        try:
            peer = x509.identity_of(certificate)
        except x509.CertificateError as error:
            raise ChannelError(f"the peer's certificate is not of this mesh's form: {error}") from error
        if self._expect is not None and not _fits(peer, self._expect):
            raise ChannelError(f"the peer is {peer}, which is not who is wanted here")
        return peer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it."""
        if self._sending:
            raise trio.BusyResourceError("another task is sending on this channel")
        self._sending = True
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            view = memoryview(data).cast("B")
            for at in range(0, len(view), PIECE):
                self._check()
                try:
                    self._machine.write(view[at : at + PIECE])
                except tls.TlsError as error:
                    raise self._end(_explained(str(error))) from error
                await self._flush()
            if not view:
                await trio.lowlevel.checkpoint()
        finally:
            self._sending = False

    async def wait_send_all_might_not_block(self) -> None:
        """As the stream below."""
        await self._transport.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """At least one byte, at most one TLS record; b"" when the peer closed properly."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving on this channel")
        self._receiving = True
        try:
            await trio.lowlevel.checkpoint()
            if self._closed or not self._buffer:
                self._check()
            into = memoryview(self._buffer)[: max_bytes or len(self._buffer)]
            while True:
                try:
                    count = self._machine.read_into(into)
                except tls.TlsClosed:
                    return b""
                except tls.TlsError as error:
                    raise self._end(_explained(str(error))) from error
                if count:
                    return bytes(into[:count])
                # Reading can give something to send: the answer to a key update. A sender that is busy takes it along,
                # and to wait for it would be a deadlock when both sides send more than the sockets hold.
                if not self._flushing.locked():
                    await self._flush()
                try:
                    data = await self._transport.receive_some(PIECE)
                except trio.BrokenResourceError as error:
                    raise self._end("the connection broke") from error
                if not data:
                    raise self._end("the peer ended the connection without ending TLS: it died, or somebody cut in")
                self._machine.feed(data)
        finally:
            self._receiving = False

    async def aclose(self) -> None:
        """Say goodbye, at most FAREWELL seconds long and only if nothing is half-sent, and close the stream below."""
        try:
            if self._broken is None and not self._flushing.locked():
                self._machine.close()
                with trio.move_on_after(FAREWELL), contextlib.suppress(ChannelError, trio.ClosedResourceError):
                    await self._flush()
        finally:
            self._closed = True
            await self._transport.aclose()

    async def _flush(self) -> None:
        """Send what the machine has to say. The lock keeps records in order between a sender and a receiver."""
        async with self._flushing:
            while ciphertext := self._machine.take():
                try:
                    await self._transport.send_all(ciphertext)
                except trio.BrokenResourceError as error:
                    raise self._end("the connection broke") from error
                except BaseException:
                    self._end("an earlier message was cut off in the middle")
                    raise

    async def _farewell(self) -> None:
        """After a failed handshake: let the peer have the alert or the goodbye. A socket closed with unread bytes would
        send a reset that overtakes it, so read on until the peer has gone."""
        with trio.move_on_after(FAREWELL), contextlib.suppress(trio.BrokenResourceError):
            while ciphertext := self._machine.take():
                await self._transport.send_all(ciphertext)
            if isinstance(self._transport, trio.abc.HalfCloseableStream):
                await self._transport.send_eof()
                left = PIECE
                while left > 0 and (data := await self._transport.receive_some(PIECE)):
                    left -= len(data)

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the channel was closed here")
        if self._broken:
            raise ChannelError(self._broken)

    def _end(self, why: str) -> ChannelError:
        self._broken = self._broken or why
        return ChannelError(why)


async def connect(
    host: str,
    port: int,
    context: SSL.Context,
    *,
    expect: Expected,
    timeout: float = HANDSHAKE_TIMEOUT,  # noqa: ASYNC109 - its end is a ChannelError that names the address
) -> Channel:
    """A channel to `expect` at host and port; the caller closes it. ChannelError, with the address in its message, if
    there is none within `timeout` seconds."""
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    with trio.move_on_after(timeout):
        try:
            transport = await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise ChannelError(f"{where} cannot be reached: {_first(error)}; does it run, and listen there?") from error
        try:
            keep_alive(transport)
            channel = Channel(transport, context, server=False, expect=expect, timeout=timeout)
            await channel.handshake()
        except ChannelError as error:
            await trio.aclose_forcefully(transport)
            raise ChannelError(f"{where}: {error}") from error
        except BaseException:
            await trio.aclose_forcefully(transport)
            raise
        return channel
    raise ChannelError(
        f"{where} did not answer within {timeout:g} s; is it up, and does a firewall drop the way to it?"
    )


def keep_alive(transport: trio.SocketStream) -> None:
    """Let the kernel notice within a minute that a peer is gone without a word: a session may be quiet for days."""
    transport.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        transport.setsockopt(socket.IPPROTO_TCP, option, value)
    transport.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)


_HINTS = (
    ("alert unknown ca", "the peer does not trust the root of our certificate: are we of another mesh?"),
    ("alert certificate expired", "the peer finds our certificate expired: was it not renewed, or is a clock wrong?"),
    ("alert certificate required", "the peer demands a certificate and we showed none"),
    ("alert bad certificate", "the peer refuses our certificate: do the clocks of both machines agree?"),
    ("did not return a certificate", "the peer showed no certificate"),
    ("http request", "the peer speaks plain HTTP, not TLS"),
    ("wrong version number", "the peer does not speak TLS"),
    ("packet length too long", "the peer does not speak TLS"),
    ("protocol version", "the peer does not speak TLS 1.3"),
    ("unsupported protocol", "the peer does not speak TLS 1.3"),
)
"""OpenSSL's words, and what they probably mean."""


def _explained(said: str) -> str:
    return next((f"{hint} ({said})" for words, hint in _HINTS if words in said), said)


def _fits(peer: Identity, expect: Expected) -> bool:
    return isinstance(peer, expect) if isinstance(expect, type) else expect(peer)


def _first(error: OSError) -> str:
    """What the kernel said; trio wraps it, and groups it when a name has several addresses."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno):
        cause = cause.exceptions[0] if isinstance(cause, BaseExceptionGroup) else cause.__cause__
    if isinstance(cause, OSError) and cause.errno:
        return os.strerror(cause.errno) if cause.errno > 0 else str(cause.strerror)  # the resolver's are negative
    return str(error)
