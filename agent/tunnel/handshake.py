"""TCP and TLS up to the point where a tunnel can join the relay. Handles hostile bytes.

Both functions end within TIMEOUT for each step. The socket is the caller's on return; on any failure, and when
cancelled, it is closed.
"""

import errno
import ipaddress
import os
import socket
from collections.abc import Awaitable, Callable

import trio
from OpenSSL import SSL

from agent.tunnel.credentials import ALPN, Arrival, Credentials
from ca.identity import WorkloadIdentity
from ca.tls import Machine, TlsError
from ca.x509 import CertificateError, identity_of
from redirect.origdst import dial_socket

TIMEOUT = 5.0
"""Seconds for TCP connect and for the TLS handshake, each: the peers' default connect timeout."""
PATIENCE = 3.0
"""Seconds that a peer waits for a certificate that is on its way: signing takes some hundredths. Within TIMEOUT."""
_CHUNK = 2**14
_MOST = 2**16  # bytes of handshake that we read; the largest sound one has some kilobytes of certificates


class HandshakeError(Exception):
    """No tunnel; the message says which step failed and why."""


async def dial(
    address: str, port: int, mark: int, ctx: SSL.Context, expected: WorkloadIdentity
) -> tuple[socket.socket, Machine]:
    """Connect to another agent, and make sure that it can speak for `expected`."""
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    try:
        sock = dial_socket(family, mark)
    except OSError as error:
        raise HandshakeError(str(error)) from error
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await _connect(sock, address, port)
        machine = Machine(ctx, server=False, server_name=expected.sni)
        _, peer = await _shake(sock, machine)
        if peer != expected:
            raise HandshakeError(f"node {address} proved to be {peer}, not {expected}")
        await trio.lowlevel.checkpoint_if_cancelled()  # its last step may have waited for nothing, and not have noticed
    except BaseException:
        sock.close()
        raise
    return sock, machine


async def accept(sock: socket.socket, credentials: Credentials) -> tuple[Machine, WorkloadIdentity, WorkloadIdentity]:
    """Answer an arriving tunnel; -> its machine, the identity we answered as, and the peer's.

    A workload that was just enrolled is known to others some milliseconds before its certificate is here: who asks for
    it meanwhile waits, up to PATIENCE."""
    try:
        arrival = Arrival(sock.getsockname()[0])

        async def begin_again(heard: bytes) -> Machine | None:
            if arrival.awaited is None:
                return None
            with trio.move_on_after(PATIENCE):
                await credentials.certified(arrival.awaited)
                again = Machine(credentials.answering(), server=True, tag=arrival)
                again.feed(heard)
                return again
            return None

        try:
            first = Machine(credentials.answering(), server=True, tag=arrival)
            machine, peer = await _shake(sock, first, begin_again)
        except HandshakeError as error:
            if arrival.awaited:
                raise HandshakeError(f"there is no certificate yet for {arrival.awaited}") from error
            if arrival.asked and arrival.identity is None:
                raise HandshakeError(f"no local workload is meant by {arrival.asked}") from error
            raise
        if arrival.identity is None:
            raise HandshakeError("no local workload was chosen")
        await trio.lowlevel.checkpoint_if_cancelled()
    except BaseException:
        sock.close()
        raise
    return machine, arrival.identity, peer


async def _connect(sock: socket.socket, address: str, port: int) -> None:
    try:
        with trio.fail_after(TIMEOUT):
            code = sock.connect_ex((address, port))
            if code == errno.EINPROGRESS:
                await trio.lowlevel.wait_writable(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    except trio.TooSlowError:
        raise HandshakeError(f"node {address} does not answer on port {port} within {TIMEOUT:.0f} s") from None
    if code:
        hint = "; is its agent running?" if code == errno.ECONNREFUSED else ""
        raise HandshakeError(f"cannot connect to node {address} port {port}: {os.strerror(code)}{hint}")


async def _shake(
    sock: socket.socket, machine: Machine, begin_again: Callable[[bytes], Awaitable[Machine | None]] | None = None
) -> tuple[Machine, WorkloadIdentity]:
    """`begin_again` may give another machine for all that the peer has said, when the first one fails over it."""
    heard = b""
    try:
        with trio.fail_after(TIMEOUT):
            while True:
                try:
                    if machine.handshake():
                        break
                except TlsError:
                    another = await begin_again(heard) if begin_again else None
                    if another is None:
                        raise
                    machine, begin_again = another, None
                    continue
                await _send(sock, machine)
                data = await _receive(sock)
                heard += data
                if not data:
                    raise HandshakeError("the peer hung up during the TLS handshake: did it refuse our certificate?")
                if len(heard) > _MOST:
                    raise HandshakeError("the peer talks on and on in its TLS handshake")
                machine.feed(data)
            await _send(sock, machine)
    except trio.TooSlowError:
        raise HandshakeError(f"the TLS handshake did not end within {TIMEOUT:.0f} s") from None
    except TlsError as error:
        if alert := machine.take():  # tells the peer why; it fits any socket buffer
            try:
                sock.send(alert)
            except OSError:
                pass
        raise HandshakeError(f"TLS: {error}") from error
    except OSError as error:
        raise HandshakeError(f"the peer hung up during the TLS handshake: {error.strerror}") from error
    return machine, _peer(machine)


async def _receive(sock: socket.socket) -> bytes:
    while True:
        try:
            return sock.recv(_CHUNK)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)


async def _send(sock: socket.socket, machine: Machine) -> None:
    while data := machine.take():
        while data:
            try:
                data = data[sock.send(data) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)


def _peer(machine: Machine) -> WorkloadIdentity:
    certificate = machine.peer_certificate
    if certificate is None or machine.alpn != ALPN:
        raise HandshakeError("the peer does not speak HTTP/2 here")
    try:
        identity = identity_of(certificate)
    except CertificateError as error:
        raise HandshakeError(str(error)) from error
    if not isinstance(identity, WorkloadIdentity):
        raise HandshakeError(f"the peer proved to be {identity}: only workloads speak here")
    return identity
