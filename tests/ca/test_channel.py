"""Channels over real loopback sockets, with friends and with enemies."""

import contextlib
import gc
import re
import socket
import ssl
from datetime import timedelta

import pytest
import trio
import trio.testing
from cryptography import x509 as cx
from cryptography.hazmat.primitives import hashes
from OpenSSL import SSL

from ca import tls, x509
from ca.channel import PIECE, Channel, ChannelError
from ca.identity import Identity, NodeIdentity, OperatorIdentity
from tests.ca.loopback import (
    CENTRE,
    DAY,
    ISSUING,
    KEY,
    NODE,
    NOW,
    OTHER_ISSUING,
    OTHER_ROOT,
    ROOT,
    TD,
    WEB,
    Credentials,
    Server,
    client_context,
    credentials,
    dial,
    server_context,
    serving,
)


async def receive_exactly(stream: trio.abc.ReceiveStream, count: int) -> bytes:
    got = bytearray()
    while len(got) < count:
        data = await stream.receive_some(count - len(got))
        assert data
        got += data
    return bytes(got)


async def test_a_peer_that_vanishes_is_noticed() -> None:
    """The kernel's work; that it is asked for shows in the socket."""
    async with serving(server_context()) as server, await dial(server, client_context(credentials(NODE))) as channel:
        sock = channel._transport.socket
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1


async def test_both_ends_know_each_other_and_carry_bytes() -> None:
    async with serving(server_context(), expect=NodeIdentity) as server:
        async with await dial(server, client_context(credentials(NODE))) as channel:
            assert channel.peer == CENTRE
            assert channel.peer_certificate is not None
            assert x509.identity_of(channel.peer_certificate) == CENTRE
            await channel.send_all(b"hello")
            await channel.send_all(b"")
            assert await receive_exactly(channel, 2) == b"he"
            assert await receive_exactly(channel, 3) == b"llo"
        assert server.outcomes == [NODE]


async def test_much_goes_both_ways_at_once() -> None:
    data = bytes(range(256)) * 16_384  # 4 MiB: more than all buffers on the way
    async with (
        serving(server_context()) as server,
        await dial(server, client_context(credentials(NODE))) as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(channel.send_all, data)
        assert await receive_exactly(channel, len(data)) == data


async def test_what_waits_to_be_sent_is_bounded() -> None:
    """Towards a peer that reads nothing, no more than a piece is encrypted ahead of the socket."""

    class Sluggish(trio.abc.Stream):
        """Takes nothing once it is stopped, and remembers what it was handed."""

        def __init__(self, below: trio.SocketStream) -> None:
            self.below, self.stopped, self.handed = below, False, 0

        async def send_all(self, data: bytes | bytearray | memoryview) -> None:
            if self.stopped:
                self.handed += len(data)
                await trio.sleep_forever()
            await self.below.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            await self.below.wait_send_all_might_not_block()

        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            return await self.below.receive_some(max_bytes)

        async def aclose(self) -> None:
            await self.below.aclose()

    async with serving(server_context()) as server:
        sluggish = Sluggish(await trio.open_tcp_stream("127.0.0.1", server.port))
        async with Channel(sluggish, client_context(credentials(NODE)), server=False) as channel:
            await channel.handshake()
            sluggish.stopped = True
            with trio.move_on_after(0.1):
                await channel.send_all(bytes(2**24))
            assert PIECE < sluggish.handed < 2 * PIECE


async def test_the_peer_s_goodbye_is_the_end_and_its_death_is_an_error() -> None:
    async def leave(channel: Channel) -> None:
        await channel.send_all(b"bye")

    async def die(channel: Channel) -> None:
        await channel.send_all(b"bye")
        await trio.aclose_forcefully(channel._transport)

    for talk, ends_well in ((leave, True), (die, False)):
        context = client_context(credentials(NODE))
        async with serving(server_context(), talk) as server, await dial(server, context) as channel:
            assert await receive_exactly(channel, 3) == b"bye"
            if ends_well:
                assert await channel.receive_some() == b""
                assert await channel.receive_some() == b""
            else:
                with pytest.raises(ChannelError, match=r"without ending TLS|broke"):
                    await channel.receive_some()


async def test_closed_here_and_broken_are_two_errors() -> None:
    async with serving(server_context()) as server:
        channel = await dial(server, client_context(credentials(NODE)))
        with pytest.raises(ValueError, match="at least 1"):
            await channel.receive_some(0)
        await channel.aclose()
        await channel.aclose()
        with pytest.raises(trio.ClosedResourceError):
            await channel.send_all(b"x")
        with pytest.raises(trio.ClosedResourceError):
            await channel.receive_some()


async def test_one_task_sends_and_one_receives() -> None:
    async def idle(channel: Channel) -> None:
        await trio.sleep_forever()

    async with (
        serving(server_context(), idle) as server,
        await dial(server, client_context(credentials(NODE))) as channel,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(channel.receive_some)
        nursery.start_soon(channel.send_all, bytes(2**26))
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(trio.BusyResourceError, match="receiving"):
            await channel.receive_some()
        with pytest.raises(trio.BusyResourceError, match="sending"):
            await channel.send_all(b"x")
        nursery.cancel_scope.cancel()


# Who is refused, and what both sides are told


async def refused(server: Server, context: SSL.Context) -> str:
    """What a client learns: in its handshake or, as TLS 1.3 has it, with the first thing it receives."""
    with pytest.raises(ChannelError) as caught:
        async with await dial(server, context) as channel:
            await channel.receive_some()
    await server.met.wait()
    return str(caught.value)


@pytest.mark.parametrize(
    ("who", "here", "there"),
    [
        (None, "the peer demands a certificate and we showed none", "the peer showed no certificate"),
        (
            credentials(NODE, OTHER_ISSUING),
            "the peer does not trust the root of our certificate: are we of another mesh?",
            "leads to no root that is trusted here: is the peer of another mesh?",
        ),
        (
            credentials(NODE, at=NOW - 2 * DAY),
            "the peer finds our certificate expired",
            f"the peer's certificate ended at {NOW - DAY:%F %H:%M} UTC",
        ),
        (
            credentials(NODE, at=NOW + DAY),
            "the peer refuses our certificate: do the clocks",
            f"is not valid before {NOW + DAY - timedelta(minutes=2):%F %H:%M} UTC: are the clocks",
        ),
    ],
    ids=["nobody", "foreign", "expired", "early"],
)
async def test_a_client_that_proves_nothing(who: Credentials | None, here: str, there: str) -> None:
    async with serving(server_context()) as server:
        assert here in await refused(server, client_context(who))
        (outcome,) = server.outcomes
        assert isinstance(outcome, str)
        assert there in outcome


@pytest.mark.parametrize(
    ("context", "what"),
    [
        (server_context(credentials(CENTRE, at=NOW - 2 * DAY)), "certificate ended at .* was it not renewed"),
        (server_context(credentials(CENTRE, at=NOW + DAY)), "is not valid before .* are the clocks"),
        (server_context(credentials(WEB)), f"the peer is {WEB}, which is not who is wanted here"),
        (server_context(credentials(NODE)), f"the peer is {NODE}, which is not who is wanted here"),
    ],
    ids=["expired", "early", "workload", "node"],
)
async def test_a_server_that_is_not_the_centre(context: SSL.Context, what: str) -> None:
    async with serving(context) as server:
        with pytest.raises(ChannelError, match=rf"127\.0\.0\.1:{server.port}: .*{what}"):
            await dial(server, client_context(credentials(NODE)))


async def test_a_server_of_another_mesh() -> None:
    async with serving(server_context()) as server:
        with pytest.raises(ChannelError, match="is the peer of another mesh"):
            await dial(server, client_context(credentials(NODE), OTHER_ROOT))
        await server.met.wait()
        (outcome,) = server.outcomes
        assert "does not trust the root of our certificate" in str(outcome)


@pytest.mark.parametrize("who", [WEB, OperatorIdentity(TD, "admin"), CENTRE])
async def test_a_client_of_the_wrong_class(who: Identity) -> None:
    async with serving(server_context(), expect=NodeIdentity) as server:
        async with await dial(server, client_context(credentials(who))) as channel:
            assert await channel.receive_some() == b""  # a goodbye: nothing went wrong on the way
        await server.met.wait()
        assert server.outcomes == [f"the peer is {who}, which is not who is wanted here"]


async def test_a_function_can_say_who_is_expected() -> None:
    async with serving(server_context()) as server:
        context = client_context(credentials(NODE))
        async with await dial(server, context, expect=lambda peer: peer == CENTRE) as channel:
            assert channel.peer == CENTRE
        with pytest.raises(ChannelError, match="not who is wanted"):
            await dial(server, context, expect=lambda peer: False)


def _odd_leaf() -> Credentials:
    """Rightly signed, and fit for TLS in OpenSSL's eyes, but with two identities."""
    good = x509.issue(ISSUING, NODE, KEY.public_key(), NOW, DAY)
    builder = cx.CertificateBuilder(ISSUING.cert.subject, cx.Name([]), KEY.public_key(), good.serial_number)
    builder = builder.not_valid_before(NOW - DAY).not_valid_after(NOW + DAY)
    for e in good.extensions:
        value = e.value
        if isinstance(value, cx.SubjectAlternativeName):
            value = cx.SubjectAlternativeName([cx.UniformResourceIdentifier(str(i)) for i in (NODE, WEB)])
        builder = builder.add_extension(value, critical=e.critical)
    return x509.pem(builder.sign(ISSUING.key, hashes.SHA256()), ISSUING.cert), x509.key_pem(KEY)


async def test_a_certificate_of_another_form_proves_nothing() -> None:
    async with serving(server_context()) as server:
        async with await dial(server, client_context(_odd_leaf())) as channel:
            assert await channel.receive_some() == b""
        await server.met.wait()
        assert "not of this mesh's form: it has 2 URI SANs" in str(server.outcomes[0])


async def test_a_client_without_certificate_where_that_is_allowed() -> None:
    context = server_context(client_certificate=False)
    async with serving(context) as server, await dial(server, client_context()) as channel:
        await channel.send_all(b"token")
        assert await receive_exactly(channel, 5) == b"token"
        assert server.outcomes == [None]
    async with serving(context, expect=NodeIdentity) as server:
        async with await dial(server, client_context()) as channel:
            assert await channel.receive_some() == b""
        await server.met.wait()
        assert server.outcomes == ["the peer showed no certificate"]
    async with serving(context) as server:  # a bad certificate is worse than none
        assert "another mesh" in await refused(server, client_context(credentials(NODE, OTHER_ISSUING)))


# Joining with a fingerprint only


def chain(*issuers: cx.Certificate, leaf: cx.Certificate | None = None) -> SSL.Context:
    """A server that trusts nothing, so that OpenSSL adds nothing to the chain it is given."""
    own = leaf or x509.issue(ISSUING, CENTRE, KEY.public_key(), NOW, DAY)
    return tls.context([], (x509.pem(own, *issuers), x509.key_pem(KEY)), server=True, peer_certificate=False)


async def test_the_fingerprint_of_the_root_is_enough_to_know_the_centre() -> None:
    async with serving(chain(ISSUING.cert, ROOT.cert)) as server:
        async with await dial(server, tls.pinned_context(x509.fingerprint(ROOT.cert))) as channel:
            assert channel.peer == CENTRE
        with pytest.raises(ChannelError, match="leads to no root that is trusted here"):
            await dial(server, tls.pinned_context(x509.fingerprint(OTHER_ROOT.cert)))


def _forged_leaf(key: x509.Issuer) -> cx.Certificate:
    return x509.issue(x509.Issuer(ISSUING.cert, key.key), CENTRE, KEY.public_key(), NOW, DAY)


@pytest.mark.parametrize(
    "context",
    [
        chain(ISSUING.cert),
        chain(OTHER_ISSUING.cert, ROOT.cert),
        chain(ISSUING.cert, ROOT.cert, leaf=_forged_leaf(OTHER_ISSUING)),
        chain(ISSUING.cert, ROOT.cert, leaf=x509.issue(OTHER_ISSUING, CENTRE, KEY.public_key(), NOW, DAY)),
        chain(ISSUING.cert, ROOT.cert, leaf=x509.issue(ISSUING, CENTRE, KEY.public_key(), NOW - 2 * DAY, DAY)),
        chain(ISSUING.cert, ROOT.cert, leaf=x509.issue(ISSUING, WEB, KEY.public_key(), NOW, DAY)),
    ],
    ids=["no root", "other issuer", "forged signature", "stray leaf", "expired", "workload"],
)
async def test_to_show_the_right_root_is_not_to_have_its_word(context: SSL.Context) -> None:
    async with serving(context) as server:
        with pytest.raises(ChannelError):
            await dial(server, tls.pinned_context(x509.fingerprint(ROOT.cert)))


# What is no TLS, and what is too slow


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "speaks plain HTTP, not TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "does not speak TLS"),
        (bytes(200), "does not speak TLS"),
        (b"", "ended the connection during the TLS handshake"),
        (b"\x16\x03\x01", "ended the connection during the TLS handshake"),
    ],
)
async def test_who_does_not_speak_tls_is_told_and_dropped(said: bytes, what: str) -> None:
    async with serving(server_context()) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            await stream.send_all(said)
            await stream.send_eof()
            while await stream.receive_some():
                pass
        assert what in str(server.outcomes[0])


async def test_older_tls_is_refused() -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serving(server_context()) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with trio.SSLStream(stream, old) as client:
            with pytest.raises(trio.BrokenResourceError):
                await client.do_handshake()
        await server.met.wait()
        assert "does not speak TLS 1.3" in str(server.outcomes[0])


async def test_a_client_that_dawdles_is_dropped() -> None:
    async with serving(server_context(), timeout=0.2) as server:
        async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
            machine = tls.Machine(client_context(credentials(NODE)), server=False)
            machine.handshake()
            began = trio.current_time()
            with contextlib.suppress(trio.BrokenResourceError):
                for byte in machine.take():  # a byte now and then keeps no handshake alive
                    await stream.send_all(bytes([byte]))
                    if server.met.is_set():
                        break
                    await trio.sleep(0.02)
            assert trio.current_time() - began < 2
        assert "not done after 0.2 s" in str(server.outcomes[0])


async def test_a_server_that_says_nothing_is_given_up() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        silent = Server(listener.socket.getsockname()[1])
        with pytest.raises(ChannelError, match=r"not done after 0\.2 s|did not answer within 0\.2 s"):
            await dial(silent, client_context(), within=0.2)


async def test_where_nobody_listens() -> None:
    async with serving(server_context()) as server:
        pass
    with pytest.raises(ChannelError, match=rf"127\.0\.0\.1:{server.port} cannot be reached: Connection refused"):
        await dial(server, client_context())


# Cancellation


async def test_a_cancelled_send_ends_sending_and_the_peer_sees_a_cut() -> None:
    cut: list[str] = []
    seen = trio.Event()

    async def watch(channel: Channel) -> None:
        try:
            while await channel.receive_some():
                pass
        except ChannelError as error:
            cut.append(str(error))
        finally:
            seen.set()

    begin = trio.Event()

    async def later(channel: Channel) -> None:
        await begin.wait()
        await watch(channel)

    async with serving(server_context(), later) as server:
        async with await dial(server, client_context(credentials(NODE))) as channel:
            with trio.move_on_after(0.1) as scope:
                await channel.send_all(bytes(2**26))
            assert scope.cancelled_caught
            with pytest.raises(ChannelError, match="cut off in the middle"):
                await channel.send_all(b"x")
        begin.set()
        await seen.wait()
    (error,) = cut
    assert re.search("without ending TLS|connection broke", error)


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with serving(server_context()) as server, await dial(server, client_context(credentials(NODE))) as channel:
        for _ in range(3):
            with trio.move_on_after(0.01) as scope:
                await channel.receive_some()
            assert scope.cancelled_caught
        await channel.send_all(b"still here")
        assert await receive_exactly(channel, 10) == b"still here"


async def test_closing_is_quick_when_the_peer_reads_nothing(autojump_clock: trio.testing.MockClock) -> None:
    client, transport = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        server = Channel(transport, server_context(), server=True)
        channel = Channel(client, client_context(credentials(NODE)), server=False)
        nursery.start_soon(server.handshake)
        await channel.handshake()

    async def stuck() -> None:
        await trio.sleep_forever()

    client.send_stream.send_all_hook = stuck
    began = trio.current_time()
    await channel.aclose()
    assert trio.current_time() - began == pytest.approx(1.0)


async def test_a_handshake_cancelled_at_any_step_leaves_no_socket_open() -> None:
    async with serving(server_context()) as server:
        context = client_context(credentials(NODE))
        for step in range(20):
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:

                    async def stop(scope: trio.CancelScope = scope, steps: int = step) -> None:
                        for _ in range(steps):
                            await trio.lowlevel.checkpoint()
                        scope.cancel()

                    nursery.start_soon(stop)
                    async with await dial(server, context):
                        pass
        gc.collect()  # the warning of a socket that nobody closed is an error
