"""The TLS machine, both ends in memory."""

import datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from OpenSSL import SSL, crypto

from ca.tls import TAKE, Machine, Memory, TlsClosed, TlsError, by_server_name, context

NOW = datetime.datetime.now(datetime.UTC)
Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def make(name: str, signer: Pair | None = None) -> Pair:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(signer[0].subject if signer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(hours=1))
        .not_valid_after(NOW + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=signer is None, path_length=None), critical=True)
    )
    return builder.sign(signer[1] if signer else key, hashes.SHA256()), key


def pem(pair: Pair) -> tuple[bytes, bytes]:
    certificate, key = pair
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )


ROOT, OTHER_ROOT = make("root"), make("other root")
SERVER, CLIENT, STRANGER = make("server", ROOT), make("client", ROOT), make("stranger", OTHER_ROOT)


def shake(client: Machine, server: Machine, step: int = 2**18) -> None:
    """Carry the handshake, `step` bytes at a time, until both sides are done."""
    done = [False, False]
    for _ in range(20):
        for i, (me, other) in enumerate(((client, server), (server, client))):
            done[i] = me.handshake()
            data = me.take()
            for at in range(0, len(data), step):
                other.feed(data[at : at + step])
                if step < 2**18:
                    done[1 - i] = other.handshake()
        if all(done):
            return
    raise AssertionError("no end of the handshake")


def ends(*, client: Pair | None = CLIENT, client_roots: Pair = ROOT) -> tuple[Machine, Machine]:
    there = context([ROOT[0]], pem(SERVER), server=True, alpn=b"h2")
    here = context([client_roots[0]], pem(client) if client else None, server=False, alpn=b"h2")
    return Machine(here, server=False), Machine(there, server=True)


@pytest.mark.parametrize("step", [1, 7, 2**18])
def test_both_ends_know_each_other_and_carry_bytes(step: int) -> None:
    client, server = ends()
    shake(client, server, step)
    assert client.peer_certificate == SERVER[0]
    assert server.peer_certificate == CLIENT[0]
    assert client.alpn == server.alpn == b"h2"
    sent = bytes(range(256)) * 1000
    client.write(sent)
    got, buffer = bytearray(), memoryview(bytearray(2**14))
    while data := client.take():
        server.feed(data)
    while n := server.read_into(buffer):
        got += buffer[:n]
    assert got == sent
    client.close()
    server.feed(client.take())
    with pytest.raises(TlsClosed):
        server.read_into(buffer)


@pytest.mark.parametrize(
    ("client", "roots", "why"),
    [
        (STRANGER, ROOT, "leads to no root that is trusted here"),
        (None, ROOT, "peer did not return a certificate"),
        (CLIENT, OTHER_ROOT, "leads to no root that is trusted here"),
    ],
    ids=["foreign", "nobody", "distrusts"],
)
def test_whoever_cannot_prove_itself_is_refused(client: Pair | None, roots: Pair, why: str) -> None:
    here, there = ends(client=client, client_roots=roots)
    with pytest.raises(TlsError, match=why):
        shake(here, there)


def test_garbage_is_an_error_with_a_reason() -> None:
    _, server = ends()
    server.feed(b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(TlsError, match=r"\w"):
        server.handshake()


def test_the_server_name_chooses_the_certificate_and_an_unknown_one_is_refused() -> None:
    contexts = {n: context([ROOT[0]], pem(make(n, ROOT)), server=True) for n in ("a.id", "b.id")}
    asked: list[tuple[str | None, object]] = []

    def names(name: str | None, tag: object) -> SSL.Context | None:
        asked.append((name, tag))
        return contexts.get(name or "a.id")

    front = context([ROOT[0]], server=True)
    by_server_name(front, names)
    here = context([ROOT[0]], pem(CLIENT), server=False)
    for name, expected in (("b.id", "b.id"), (None, "a.id")):
        client = Machine(here, server=False, server_name=name)
        shake(client, Machine(front, server=True, tag="10.0.0.1"))
        certificate = client.peer_certificate
        assert certificate is not None
        assert certificate.subject.rfc4514_string() == f"CN={expected}"
    assert asked == [("b.id", "10.0.0.1"), (None, "10.0.0.1")]
    with pytest.raises(TlsError):
        shake(Machine(here, server=False, server_name="c.id"), Machine(front, server=True))


def test_a_peer_that_is_refused_spoils_nothing_for_the_next() -> None:
    front, chosen = context([ROOT[0]], server=True), context([ROOT[0]], pem(SERVER), server=True)
    by_server_name(front, lambda _name, _tag: chosen)
    here, foreign = (context([ROOT[0]], pem(who), server=False) for who in (CLIENT, STRANGER))
    for _ in range(2):
        with pytest.raises(TlsError, match="leads to no root that is trusted here"):
            shake(Machine(foreign, server=False), Machine(front, server=True))
        server = Machine(front, server=True)
        shake(Machine(here, server=False), server)
        assert server.peer_certificate == CLIENT[0]


@pytest.mark.parametrize(
    ("there", "instead"),
    [
        (bytes.fromhex("a003020102"), bytes.fromhex("a003020107")),  # a version that there is not
        (bytes.fromhex("a003020102"), bytes.fromhex("a003020100")),  # the default, written out
        (NOW.strftime("%y%m%d").encode(), b"011340"),  # the 40th of a 13th month
        (b"\x0c\x05weird", b"\x13\x05weir\xff"),  # a PrintableString that is none
    ],
)
def test_a_certificate_that_only_openssl_can_read_is_refused_like_any_other(there: bytes, instead: bytes) -> None:
    weird, key = make("weird")
    der = weird.public_bytes(serialization.Encoding.DER)
    assert there in der
    ctx = context([ROOT[0]], pem((weird, key)), server=False, alpn=b"h2")
    changed = crypto.load_certificate(crypto.FILETYPE_ASN1, der.replace(there, instead))
    assert SSL._lib.SSL_CTX_use_certificate(ctx._context, changed._x509) == 1
    server = context([ROOT[0]], pem(SERVER), server=True, alpn=b"h2")
    with pytest.raises(TlsError, match="the peer's certificate cannot be read"):
        shake(Machine(ctx, server=False), Machine(server, server=True))
    shake(
        Machine(context([ROOT[0]], pem(CLIENT), server=False, alpn=b"h2"), server=False), Machine(server, server=True)
    )


def sealed(machine: Machine, plaintext: bytes) -> bytes:
    """What `machine` makes of it, in place as the relay does."""
    memory, into = Memory(len(plaintext)), Memory(TAKE)
    memory.view[:] = plaintext
    count = machine.seal(memory, len(plaintext), into)
    ciphertext = bytes(into.view[:count])
    while count == TAKE:
        count = machine.take_into(into)
        ciphertext += into.view[:count]
    return ciphertext


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from((1, 100, 2**14 - 1, 2**14, 2**14 + 1, 2**17, 2**18 + 5)), min_size=1, max_size=6),
    arrivals=st.lists(st.sampled_from((997, 2**12, 2**14 + 22, 2**15 - 1, 2**15, 2**16 + 3, 2**18)), min_size=1),
)
def test_bytes_arrive_in_any_pieces_and_their_memory_is_free_once_they_are_open(
    sizes: list[int], arrivals: list[int]
) -> None:
    client, server = ends()
    shake(client, server)
    plaintext = b"".join(bytes((number + 1,)) * size for number, size in enumerate(sizes))
    ciphertext = b""
    for number, size in enumerate(sizes):
        ciphertext += sealed(client, bytes((number + 1,)) * size)
        client.shrink()
    received, opened = Memory(2**18), Memory(2**16)
    at, got = 0, bytearray()
    while at < len(ciphertext):
        arrivals.append(size := arrivals.pop(0))
        piece = ciphertext[at : at + size]
        at += len(piece)
        received.view[: len(piece)] = piece
        server.arrived(received, len(piece))
        more = True
        while more:
            count, more = server.open(opened)
            got += opened.view[:count]
        received.forget()
        server.shrink()
    assert got == plaintext


def test_what_large_batches_took_is_given_back() -> None:
    memory = Memory(2**18)
    memory.view[:] = b"x" * 2**18
    resident = rss()
    memory.forget()
    assert rss() <= resident - 2**17
    assert memory.view[5] == 0

    client, server = ends()
    shake(client, server)
    sealed(client, b"x" * 2**18)
    before = client._leaving
    client.shrink()
    assert client._leaving != before  # OpenSSL frees what nobody uses


def rss() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_machine_that_is_closed_reads_no_memory_any_more() -> None:
    client, server = ends()
    shake(client, server)
    ciphertext = sealed(client, b"x" * 2**17)
    received, opened = Memory(2**18), Memory(2**15)
    received.view[: len(ciphertext)] = ciphertext
    server.arrived(received, len(ciphertext))
    assert server.open(opened) == (2**15, True)  # and the rest is not asked for
    server.close()
    received.view[:] = bytes(2**18)
    del received
    server.close()  # looks for the peer's goodbye
    client.feed(server.take())
    with pytest.raises(TlsClosed):
        client.read_into(memoryview(bytearray(2**14)))
