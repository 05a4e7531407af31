"""Sockets of the data path: where a captured connection meant to go, and sockets that carry our marks.

Workers import this file, so it knows the standard library only. Every socket is non-blocking, close-on-exec and owned
by the caller, who closes it. A failed system call is an OSError whose text says what was asked and what is missing.
"""

import errno
import os
import socket
import struct

ORIGINAL_DST = 80
"""SO_ORIGINAL_DST of linux/netfilter_ipv4.h and IP6T_SO_ORIGINAL_DST of linux/netfilter_ipv6/ip6_tables.h."""
SO_MARK = 36
IP_TRANSPARENT = 19
IPV6_TRANSPARENT = 75
IP_BIND_ADDRESS_NO_PORT = 24
IP_LOCAL_PORT_RANGE = 51
_STREAM = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC


class NotRedirected(Exception):
    """A connection that no redirect rule sent here: somebody dialled our port. Close it, it has no destination."""


def original_destination(sock: socket.socket) -> tuple[str, int]:
    """(address, port) that the captured connection was made to. Raises NotRedirected."""
    own: tuple[str, int] = sock.getsockname()[:2]
    try:
        if ":" in own[0]:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, ORIGINAL_DST, 28)
            port, address = struct.unpack_from("!2xH4x16s", raw)
            destination = socket.inet_ntop(socket.AF_INET6, address), port
        else:
            raw = sock.getsockopt(socket.IPPROTO_IP, ORIGINAL_DST, 16)
            port, address = struct.unpack_from("!2xH4s", raw)
            destination = socket.inet_ntop(socket.AF_INET, address), port
    except OSError as error:
        # ENOENT: no tracked connection. ENOPROTOOPT: this namespace tracks none, so nothing can have been redirected.
        if error.errno not in (errno.ENOENT, errno.ENOPROTOOPT):
            raise
        raise NotRedirected(f"{own[0]} port {own[1]} was dialled directly: the kernel has no destination") from error
    if destination == own:
        raise NotRedirected(f"{own[0]} port {own[1]} was dialled directly: it is the destination itself")
    return destination


def listener(
    family: socket.AddressFamily,
    address: str,
    port: int,
    mark: int = 0,
    backlog: int = 4096,
    transparent: bool = False,
    shared: bool = False,
) -> socket.socket:
    """A listening socket. `mark` other than 0 is put on it: the guard chain lets captured connections reach no other.

    Accepted sockets inherit the mark, so that answers pass as the agent's own. IPv6 listeners take IPv6 only. Several
    `shared` ones may have the same address and port: the kernel spreads connections evenly over them.
    """
    with _Opened(family, f"cannot listen on {address} port {port}") as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if mark:
            put_mark(sock, mark)
        if transparent:
            _make_transparent(sock, family)
        sock.bind((address, port))
        sock.listen(backlog)
    return sock


def dial_socket(family: socket.AddressFamily, mark: int) -> socket.socket:
    """An unconnected socket whose packets the rules know as the agent's own."""
    with _Opened(family, "cannot make a marked socket") as sock:
        put_mark(sock, mark)
    return sock


def spoof_socket(family: socket.AddressFamily, spoof_mark: int, source_address: str = "") -> socket.socket:
    """An unconnected socket that dials from a foreign `source_address`; left empty, `spoof_source` sets it later."""
    with _Opened(family, f"cannot make a socket that dials from {source_address or 'foreign addresses'}") as sock:
        put_mark(sock, spoof_mark)
        _make_transparent(sock, family)
        # Without it bind would take a port for all destinations alike: some 28,000 connections for each source.
        sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        # A peer says from which port (`prefer_port`): without it no server could listen at this one until it is over.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if source_address:
            spoof_source(sock, source_address)
    return sock


def spoof_source(sock: socket.socket, source_address: str) -> None:
    """Bind a socket from `spoof_socket` to its source; needs no privilege. The port is chosen when it connects."""
    sock.bind((source_address, 0))


def prefer_port(sock: socket.socket, port: int) -> bool:
    """Let a socket from `spoof_socket` connect from `port` only, 0: from any again; -> whether the kernel can (Linux
    6.3). `connect` says EADDRNOTAVAIL where it is taken. A port outside the machine's own range means nothing.

    To bind to it would take the port from everybody who connects from this machine, to wherever.
    """
    try:
        sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, struct.pack("=HH", port, port))
    except OSError:
        return False
    return True


def put_mark(sock: socket.socket, mark: int) -> None:
    """Mark what the socket sends from now on. Raises OSError."""
    # Marks are unsigned, setsockopt takes signed integers. Bytes it takes too, after two failures to read a number.
    sock.setsockopt(socket.SOL_SOCKET, SO_MARK, mark if mark < 2**31 else mark - 2**32)


def _make_transparent(sock: socket.socket, family: socket.AddressFamily) -> None:
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, IPV6_TRANSPARENT, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)


_HINTS = {
    errno.EPERM: "marks and foreign addresses need CAP_NET_ADMIN",
    errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE",
    errno.EADDRINUSE: "another process has it; `ss -ltnp` shows which",
    errno.EADDRNOTAVAIL: "this network namespace has no such address",
    errno.EAFNOSUPPORT: "the kernel has this address family switched off",
}


class _Opened:
    """A new socket, closed again when the body fails; the error then says what could not be done. A class, because a
    worker opens one for each connection, and contextlib's way takes three times as long."""

    __slots__ = ("_failure", "_family", "_sock")

    def __init__(self, family: socket.AddressFamily, failure: str) -> None:
        self._family, self._failure = family, failure
        self._sock: socket.socket | None = None

    def __enter__(self) -> socket.socket:
        try:
            sock = self._sock = socket.socket(self._family, _STREAM)
        except OSError as error:
            raise self._named(error) from error
        return sock

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is None:
            return
        if self._sock is not None:
            self._sock.close()
        if isinstance(error, OSError):
            raise self._named(error) from error

    def _named(self, error: OSError) -> OSError:
        code = error.errno or 0
        hint = f" ({_HINTS[code]})" if code in _HINTS else ""
        return OSError(code, f"{self._failure}: {os.strerror(code)}{hint}")
