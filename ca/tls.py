"""TLS 1.3 as a machine on memory buffers, and the contexts it runs with. No sockets here.

The caller moves ciphertext: `feed` what arrived, send what `take` returns. Memory BIOs rather than a socket BIO,
because one read from the socket can then carry many records, and one write too (a third less CPU for a gigabyte).

Who the peer is gets read from its certificate after the handshake (x509.identity_of); OpenSSL has by then checked
the chain, the dates and the purpose, and that the peer holds the key. No session tickets are issued: a tunnel is
long-lived, and a resumed session would skip the certificate.
"""

import contextlib
import mmap
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

_lib, _ffi = SSL._lib, SSL._ffi  # type: ignore[attr-defined]

CIPHERS = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"

TAKE = 2**18 + 2**15
"""Bytes asked of OpenSSL's output at once: a batch of 256 KiB of plaintext with its record overhead."""

ServerNames = Callable[[str | None, object], SSL.Context | None]
"""(server name asked for or None, the Machine's tag) -> the context to answer with; None refuses the handshake."""


class TlsError(Exception):
    """The TLS connection failed; the message says why in OpenSSL's words."""


class TlsClosed(TlsError):
    """The peer ended the TLS connection properly."""


def context(
    roots: Iterable[x509.Certificate],
    credentials: tuple[bytes, bytes] | None = None,
    *,
    server: bool,
    peer_certificate: bool = True,
    alpn: bytes | None = None,
) -> SSL.Context:
    """A TLS 1.3 context.

    `roots` are the only ones trusted. `credentials` are PEM (chain with the leaf first, key). A server demands a client
    certificate unless `peer_certificate` is false: then it still checks one that is offered. `alpn` is the one protocol
    spoken; a peer that does not speak it is refused.
    """
    ctx = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    ctx.set_min_proto_version(SSL.TLS1_3_VERSION)
    ctx.set_tls13_ciphersuites(CIPHERS)
    ctx.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_COMPRESSION)
    ctx.set_mode(SSL.MODE_RELEASE_BUFFERS)
    ctx.clear_mode(_lib.SSL_MODE_ENABLE_PARTIAL_WRITE)  # else SSL_write has to be called for each record
    ctx.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    store = ctx.get_cert_store()
    if store is None:
        raise TlsError("OpenSSL gave a context without a certificate store")
    for root in roots:
        store.add_cert(crypto.X509.from_cryptography(root))
    if credentials:
        chain, key = credentials
        leaf, *issuers = x509.load_pem_x509_certificates(chain)
        ctx.use_certificate(leaf)
        for issuer in issuers:
            ctx.add_extra_chain_cert(issuer)
        private = serialization.load_pem_private_key(key, password=None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise TlsError(f"the key of the certificate is no elliptic-curve key but {type(private).__name__}")
        ctx.use_privatekey(private)
    verify = SSL.VERIFY_PEER
    if server and peer_certificate:
        verify |= SSL.VERIFY_FAIL_IF_NO_PEER_CERT
    ctx.set_verify(verify, _judge)
    if alpn and server:
        ctx.set_alpn_select_callback(
            lambda _conn, offered: alpn if alpn in offered else b""  # "": a fatal no_application_protocol alert
        )
    elif alpn:
        ctx.set_alpn_protos([alpn])
    return ctx


def timeless_context(roots: Iterable[x509.Certificate]) -> SSL.Context:
    """A client's context that forgives a server whose certificate is not valid at this moment: for asking the centre's
    time, because the moment may be what is wrong."""
    ctx = context(roots, server=False)

    def judge(connection: SSL.Connection, cert: crypto.X509, fault: int, depth: int, ok: int) -> bool:
        return fault in (_NOT_YET, _ENDED) or _judge(connection, cert, fault, depth, ok)

    ctx.set_verify(SSL.VERIFY_PEER, judge)
    return ctx


def pinned_context(root: str) -> SSL.Context:
    """A client's context for who knows no more than the root's SHA-256 fingerprint (hex): a node that joins with its
    token. The server's chain must reach up to that root, as our chains do."""
    ctx = context([], server=False)

    def judge(connection: SSL.Connection, cert: crypto.X509, fault: int, depth: int, ok: int) -> bool:
        # Forgives just one thing, that this root is not in the store; dates and signatures are checked all the same.
        seen = _read(cert) if fault == _UNTRUSTED_ROOT else None
        if seen is not None and seen.fingerprint(hashes.SHA256()).hex() == root:
            return True
        return _judge(connection, cert, fault, depth, ok)

    ctx.set_verify(SSL.VERIFY_PEER, judge)
    return ctx


_NOT_YET, _ENDED, _UNTRUSTED_ROOT = 9, 10, 19
_FAULTS: dict[int, str] = {
    _NOT_YET: "is not valid before {begin}: are the clocks of both machines right?",
    _ENDED: "ended at {end}: was it not renewed, or is a clock wrong?",
    18: "is signed by itself, not by a root that is trusted here",
    _UNTRUSTED_ROOT: "leads to no root that is trusted here: is the peer of another mesh?",
    20: "leads to no root that is trusted here: is the peer of another mesh?",
    21: "leads to no root that is trusted here: is the peer of another mesh?",
    26: "is not made for this side of TLS",
}
"""What OpenSSL's verification errors (X509_V_ERR_...) mean to an operator."""


def _judge(connection: SSL.Connection, cert: crypto.X509, fault: int, depth: int, ok: int) -> bool:
    """Leave the verdict to OpenSSL, but say what it found: by itself it only says `certificate verify failed`."""
    if ok:
        return True
    said, seen = _FAULTS.get(fault, f"is not acceptable (X.509 verification error {fault})"), _read(cert)
    if seen is None:
        said = f"cannot be read (X.509 verification error {fault})"
    else:
        begin, end = (f"{t:%F %H:%M} UTC" for t in (seen.not_valid_before_utc, seen.not_valid_after_utc))
        said = said.format(begin=begin, end=end)
    whose = "an issuer of the peer's certificate" if depth and fault in (_NOT_YET, _ENDED) else "the peer's certificate"
    # Not raised: pyOpenSSL would keep the error with the context this connection began with, and give it to the next.
    connection.get_app_data().fault = f"{whose} {said}"
    return False


def _read(cert: crypto.X509) -> x509.Certificate | None:
    """None if OpenSSL forgives what `cryptography` does not: anybody may make up a certificate and show it to us."""
    try:
        return cert.to_cryptography()
    except (ValueError, x509.InvalidVersion):
        return None


def by_server_name(ctx: SSL.Context, names: ServerNames) -> None:
    """Let `names` choose the context that answers each handshake made with `ctx`."""
    # Without any certificate OpenSSL refuses the handshake by itself, which pyOpenSSL's callback cannot ask for.
    nobody = SSL.Context(SSL.TLS_SERVER_METHOD)

    def choose(connection: SSL.Connection) -> None:
        asked = connection.get_servername()
        chosen = names(asked.decode("ascii", "replace") if asked else None, connection.get_app_data().tag)
        connection.set_context(chosen or nobody)

    ctx.set_tlsext_servername_callback(choose)


RECORD = 2**14
"""The most plaintext one TLS record holds, in bytes."""

_LARGE = 2**16
"""Bytes encrypted at once that leave OpenSSL with more memory than a tunnel of small messages should keep."""
_LEND = 2**15
"""Bytes of ciphertext from which on OpenSSL reads them where they are; setting that up costs more than to copy less."""

# pyOpenSSL copies every buffer once more than needed and answers "nothing yet" with an exception. Where each message of
# a mesh passes, that is most of the cost of TLS, so Memory and the methods that take one call OpenSSL through the
# binding below pyOpenSSL; everything else is pyOpenSSL's.
_NULL = _ffi.NULL
_ssl_read, _ssl_write, _clear_error = _lib.SSL_read, _lib.SSL_write, _lib.ERR_clear_error
_bio_read, _bio_write, _held = _lib.BIO_read, _lib.BIO_write, _lib.BIO_get_mem_data


class Memory:
    """Memory that OpenSSL reads and writes in place. `view` is the same memory for everybody else. Pages that nobody
    has touched yet take no memory of the machine."""

    __slots__ = ("_pages", "_pointer", "size", "view")

    def __init__(self, size: int) -> None:
        self.size = size
        self._pages = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._pointer = _ffi.from_buffer("char[]", self._pages)
        self.view = memoryview(self._pages)

    def forget(self) -> None:
        """Give the pages back; what was in them is gone."""
        self._pages.madvise(mmap.MADV_DONTNEED)


@dataclass(slots=True)
class _Handshake:
    """What pyOpenSSL's callbacks share with a Machine."""

    tag: object
    fault: str = ""


class Machine:
    """One TLS connection. `tag` is handed to the ServerNames callback.

    The handshake: `feed` and `take` around `handshake()` until that returns True. Afterwards `write` and `read_into`,
    or, in place and for many records at once, `arrived`, `open`, `seal` and `take_into`.
    What `arrived` was given stays as it is until `open` has decrypted all of it, or the machine is closed.
    A dead machine stays dead: every call raises the TlsError again.
    """

    __slots__ = ("_arrived", "_connection", "_handshake", "_leaving", "_lent", "_ssl", "_swollen")

    def __init__(self, ctx: SSL.Context, *, server: bool, server_name: str | None = None, tag: object = None) -> None:
        connection = self._connection = SSL.Connection(ctx)
        self._ssl, self._arrived, self._leaving = connection._ssl, connection._into_ssl, connection._from_ssl
        self._lent: Memory | None = None  # what OpenSSL reads from in place
        self._swollen = False  # a large batch made its output grow, which never shrinks
        self._handshake = _Handshake(tag)
        self._connection.set_app_data(self._handshake)
        if server:
            self._connection.set_accept_state()
        else:
            self._connection.set_connect_state()
            if server_name is not None:
                self._connection.set_tlsext_host_name(server_name.encode("ascii"))

    def feed(self, ciphertext: bytes | bytearray | memoryview) -> None:
        """Give it what arrived from the peer."""
        self._connection.bio_write(ciphertext)

    def take(self) -> bytes:
        """What is to be sent to the peer now, at most TAKE bytes; empty when there is nothing."""
        try:
            return self._connection.bio_read(TAKE)
        except SSL.WantReadError:
            return b""

    def handshake(self) -> bool:
        """Go on with the handshake; True when it is done, False when the peer must speak first."""
        try:
            self._connection.do_handshake()
        except SSL.WantReadError:
            return False
        except SSL.Error as error:
            raise TlsError(self._handshake.fault) if self._handshake.fault else _translated(error) from error
        return True

    def write(self, plaintext: bytes | bytearray | memoryview) -> None:
        """Encrypt all of it; `take` has the records."""
        try:
            self._connection.sendall(plaintext)
        except SSL.Error as error:
            raise _translated(error) from error

    def read_into(self, buffer: memoryview) -> int:
        """Decrypt at most one record into `buffer` (16 KiB take any); 0 when the peer must send more first."""
        try:
            return self._connection.recv_into(buffer)
        except SSL.WantReadError:
            return 0
        except SSL.Error as error:
            raise _translated(error) from error

    def arrived(self, memory: Memory, count: int) -> None:
        """`feed` the first `count` bytes of `memory`."""
        if count >= _LEND and not _held(self._arrived, _NULL):
            self._read_from(_lib.BIO_new_mem_buf(memory._pointer, count), memory)
            return
        if self._lent is not None:
            self._read_from(_lib.BIO_new(_lib.BIO_s_mem()), None)
        if _bio_write(self._arrived, memory._pointer, count) != count:
            raise TlsError("OpenSSL has no memory left")

    def _read_from(self, bio: Any, lent: Memory | None) -> None:
        """Have OpenSSL read from `bio` from now on; the one before goes."""
        if bio == _NULL:
            raise TlsError("OpenSSL has no memory left")
        _lib.BIO_set_mem_eof_return(bio, -1)  # its end means "not yet"
        _lib.SSL_set_bio(self._ssl, bio, self._leaving)
        self._arrived = self._connection._into_ssl = bio
        self._lent = lent

    def open(self, memory: Memory) -> tuple[int, bool]:
        """Decrypt into `memory` what has arrived; -> (bytes, whether there may be more than fit)."""
        ssl, arrived, pointer = self._ssl, self._arrived, memory._pointer
        done, full = 0, memory.size - RECORD
        _clear_error()  # SSL_get_error looks at the thread's queue, where other connections' errors may stand
        while done <= full:
            got = _ssl_read(ssl, pointer + done, RECORD)
            if got <= 0:
                if _lib.SSL_get_error(ssl, got) == _lib.SSL_ERROR_WANT_READ:
                    return done, False
                if not done:
                    self._raise(got)
                break  # the same failure comes up again when the bytes before it are out of the way
            done += got
            if got < RECORD and not _held(arrived, _NULL):
                return done, False  # to hear that from SSL_read would cost as much as a small record did
        return done, True

    def seal(self, memory: Memory, count: int, into: Memory) -> int:
        """`write` the first `count` bytes of `memory`, and `take_into` `into`; -> bytes."""
        if count > _LARGE:
            self._swollen = True
        # Without partial writes it is all or nothing.
        if count and (wrote := _ssl_write(self._ssl, memory._pointer, count)) != count:
            self._raise(wrote)
        return self.take_into(into)

    def take_into(self, memory: Memory) -> int:
        """`take` into `memory`; -> bytes, 0 when there is nothing."""
        count: int = _bio_read(self._leaving, memory._pointer, memory.size)
        return count if count > 0 else 0

    def shrink(self) -> None:
        """Give back what large batches took."""
        if self._swollen and not _held(self._leaving, _NULL) and (bio := _lib.BIO_new(_lib.BIO_s_mem())) != _NULL:
            _lib.BIO_set_mem_eof_return(bio, -1)
            _lib.SSL_set_bio(self._ssl, self._arrived, bio)
            self._leaving = self._connection._from_ssl = bio
            self._swollen = False

    def _raise(self, result: int) -> NoReturn:
        try:
            self._connection._raise_ssl_error(self._connection._ssl, result)
        except SSL.Error as error:
            raise _translated(error) from error
        raise TlsError("TLS failed without a reason")

    def close(self) -> None:
        """Say goodbye: `take` has the close_notify. Never raises."""
        with contextlib.suppress(SSL.Error, TlsError):
            if self._lent is not None:
                self._read_from(_lib.BIO_new(_lib.BIO_s_mem()), None)  # the memory is somebody else's again
            self._connection.shutdown()

    @property
    def peer_certificate(self) -> x509.Certificate | None:
        """The certificate the peer proved, after the handshake."""
        return self._connection.get_peer_certificate(as_cryptography=True)

    @property
    def local_certificate(self) -> x509.Certificate | None:
        """The certificate we proved ourselves with."""
        return self._connection.get_certificate(as_cryptography=True)

    @property
    def binding(self) -> bytes:
        """What only the two ends of this connection know, and no other connection has (RFC 9266)."""
        return self._connection.export_keying_material(b"EXPORTER-Channel-Binding", 32)

    @property
    def alpn(self) -> bytes:
        """The protocol agreed on; empty if none was."""
        return self._connection.get_alpn_proto_negotiated()


def _translated(error: SSL.Error) -> TlsError:
    if isinstance(error, SSL.ZeroReturnError):
        return TlsClosed("the peer closed the TLS connection")
    if isinstance(error, SSL.SysCallError):
        return TlsError("the peer ended the connection in the middle of TLS")
    reasons = [str(entry[-1]) for entry in (error.args[0] if error.args and isinstance(error.args[0], list) else [])]
    return TlsError("; ".join(r for r in reasons if r) or "TLS failed without a reason")
