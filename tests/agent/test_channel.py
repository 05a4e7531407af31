"""Frames and descriptors over a real socketpair."""

import array
import errno
import os
import socket
import struct

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from agent.channel import MAX_DESCRIPTORS, Channel, ChannelBrokenError, ChannelClosedError, supervisor_end, worker_end
from agent.messages import FROM_WORKER, TO_WORKER, Active, Forget, Identity, Inquire, Listen, Ready, Role, Stock, View


@pytest.fixture
async def ends():
    a, b = socket.socketpair()
    supervisor, worker = supervisor_end(a), worker_end(b)
    yield supervisor, worker
    supervisor.close()
    worker.close()


@pytest.fixture
async def raw():
    """A bare socket facing the worker's end."""
    a, b = socket.socketpair()
    worker = worker_end(b)
    yield a, worker
    a.close()
    worker.close()


def frame(body: bytes, count: int = 0) -> bytes:
    return struct.pack("!IH", len(body), count) + body


def pipes(count: int) -> tuple[list[int], list[int]]:
    ends = [os.pipe() for _ in range(count)]
    return [r for r, _ in ends], [w for _, w in ends]


def close(*fds: int) -> None:
    for fd in fds:
        os.close(fd)


async def test_messages_arrive_in_order_both_ways(ends):
    supervisor, worker = ends
    view = View(7, put=[b'{"kind":"Later"}'], reset=True)
    for message in (view, Identity("spiffe://t/ns/a/sa/b", b"chain", b"key"), Inquire(3)):
        await supervisor.send(message)
    await worker.send(Ready(1234))
    assert await worker.receive() == (view, [])
    assert await worker.receive() == (Identity("spiffe://t/ns/a/sa/b", b"chain", b"key"), [])
    assert await worker.receive() == (Inquire(3), [])
    assert await supervisor.receive() == (Ready(1234), [])


async def test_descriptors_stay_with_their_message(ends):
    supervisor, worker = ends
    readers, writers = pipes(3)
    await supervisor.send(Inquire(1))
    await supervisor.send(Listen(1, Role.OUTBOUND, "shop/web"), [writers[0]])
    await supervisor.send(Inquire(2))
    await supervisor.send(Stock("shop/web", socket.AF_INET), writers[1:])
    received = [await worker.receive() for _ in range(4)]
    assert [len(fds) for _, fds in received] == [0, 1, 0, 2]
    fds = [fd for _, some in received for fd in some]
    for i, fd in enumerate(fds):
        assert not os.get_inheritable(fd)
        os.write(fd, b"%d" % i)
        assert os.read(readers[i], 9) == b"%d" % i
    close(*readers, *writers, *fds)


async def test_as_many_descriptors_as_allowed_and_no_more(ends):
    supervisor, worker = ends
    readers, writers = pipes(MAX_DESCRIPTORS // 2)
    every = readers + writers
    await supervisor.send(Stock("shop/web", socket.AF_INET), every)
    _, fds = await worker.receive()
    assert [os.fstat(f).st_ino for f in fds] == [os.fstat(f).st_ino for f in every]
    with pytest.raises(ValueError, match="251"):
        await supervisor.send(Stock("shop/web", socket.AF_INET), [*every, every[0]])
    close(*every, *fds)


async def test_a_message_larger_than_the_socket_buffer(ends):
    supervisor, worker = ends
    readers, writers = pipes(1)
    big = View(1, put=[os.urandom(1 << 20) for _ in range(8)])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.send, big, readers)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(supervisor.send, Inquire(1))
        message, fds = await worker.receive()
        assert message == big
        assert len(fds) == 1
        assert await worker.receive() == (Inquire(1), [])
    close(*readers, *writers, *fds)


async def test_byte_by_byte(raw):
    sock, worker = raw
    readers, writers = pipes(2)
    body = msgspec.msgpack.encode(Stock("shop/web", socket.AF_INET))
    got = []

    async def receive() -> None:
        got.extend([await worker.receive(), await worker.receive()])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        for fd in readers:
            whole = frame(body, 1)
            sock.sendmsg([whole[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
            for i in range(1, len(whole)):
                await trio.testing.wait_all_tasks_blocked()
                sock.send(whole[i : i + 1])
    fds = [fd for _, some in got for fd in some]
    assert [os.fstat(f).st_ino for f in fds] == [os.fstat(f).st_ino for f in readers]
    close(*readers, *writers, *fds)


async def test_an_unknown_kind_is_skipped_and_its_descriptors_closed(raw):
    sock, worker = raw
    reader, writer = os.pipe()
    body = msgspec.msgpack.encode({"m": "from-the-future", "x": 1})
    sock.sendmsg([frame(body, 1)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))])
    os.close(writer)
    sock.send(frame(msgspec.msgpack.encode(Inquire(5))))
    assert await worker.receive() == (Inquire(5), [])
    assert os.read(reader, 1) == b""  # no writer is left
    os.close(reader)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(b"\xc1"), id="no msgpack"),
        pytest.param(frame(msgspec.msgpack.encode({"m": "inquire", "id": "x"})), id="wrong field"),
        pytest.param(frame(msgspec.msgpack.encode({})), id="no kind"),
        pytest.param(struct.pack("!IH", 2**32 - 1, 0), id="too long"),
        pytest.param(struct.pack("!IH", 0, 251), id="too many descriptors"),
        pytest.param(frame(msgspec.msgpack.encode(Inquire(1)), 1), id="a descriptor missing"),
    ],
)
async def test_what_is_no_frame_breaks_the_channel(raw, data):
    sock, worker = raw
    sock.send(data)
    with pytest.raises(ChannelBrokenError):
        await worker.receive()


async def test_descriptors_that_no_frame_names_are_bounded(raw):
    sock, worker = raw
    reader, writer = os.pipe()
    for _ in range(3):
        sock.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer] * 200))])
    os.close(writer)
    with pytest.raises(ChannelBrokenError, match="no frame names"):
        await worker.receive()
    worker.close()
    assert os.read(reader, 1) == b""
    os.close(reader)


async def test_peer_gone_between_frames_and_within_one(raw):
    sock, worker = raw
    whole = frame(msgspec.msgpack.encode(Forget("spiffe://t/ns/a/sa/b")))
    sock.send(whole + whole[:9])
    sock.close()
    assert await worker.receive() == (Forget("spiffe://t/ns/a/sa/b"), [])
    with pytest.raises(ChannelClosedError):
        await worker.receive()
    with pytest.raises(ChannelClosedError):
        await worker.send(Active(1))


async def test_peer_dies_while_a_large_message_waits():
    a, b = socket.socketpair()
    supervisor = supervisor_end(a)
    async with trio.open_nursery() as nursery:

        async def die() -> None:
            await trio.testing.wait_all_tasks_blocked()
            b.close()

        nursery.start_soon(die)
        with pytest.raises(ChannelClosedError):
            await supervisor.send(View(1, put=[bytes(1 << 22)]))
    supervisor.close()


async def test_a_send_cancelled_half_way_breaks_the_channel(ends):
    supervisor, _ = ends
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.send, View(1, put=[bytes(1 << 22)]))
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    with pytest.raises(ChannelBrokenError, match="cut short"):
        await supervisor.send(Inquire(1))


async def test_cancelling_a_send_that_waits_its_turn_harms_nothing(ends):
    supervisor, worker = ends
    async with trio.open_nursery() as nursery:
        nursery.start_soon(supervisor.send, View(1, put=[bytes(1 << 22)]))
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await supervisor.send(Inquire(1))
        message, _ = await worker.receive()
        assert message.revision == 1
    await supervisor.send(Inquire(2))
    assert await worker.receive() == (Inquire(2), [])


async def test_cancelling_a_receive_loses_nothing(raw):
    sock, worker = raw
    whole = frame(msgspec.msgpack.encode(Inquire(1)))
    sock.send(whole[:5])
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(worker.receive)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
    sock.send(whole[5:])
    assert await worker.receive() == (Inquire(1), [])


async def test_close_wakes_a_waiting_receive(ends):
    supervisor, _ = ends
    with pytest.RaisesGroup(trio.ClosedResourceError):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.receive)
            await trio.testing.wait_all_tasks_blocked()
            supervisor.close()


async def test_received_descriptors_stay_open_when_the_channel_closes(ends):
    supervisor, worker = ends
    reader, writer = os.pipe()
    await supervisor.send(Listen(1, Role.TUNNEL), [writer])
    os.close(writer)
    _, [fd] = await worker.receive()
    worker.close()
    os.write(fd, b"x")
    assert os.read(reader, 1) == b"x"
    close(reader, fd)
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(fd)


@given(data=st.binary(max_size=200), cuts=st.lists(st.integers(1, 60), max_size=8))
def test_arbitrary_bytes_end_as_closed_or_broken(data, cuts):
    async def run() -> None:
        a, b = socket.socketpair()
        channel: Channel[TO_WORKER, FROM_WORKER] = supervisor_end(b)
        rest = data
        for cut in cuts:
            a.send(rest[:cut])
            rest = rest[cut:]
        a.send(rest)
        a.close()
        with pytest.raises((ChannelClosedError, ChannelBrokenError)):  # noqa: PT012 - after whatever was a message
            while True:
                await channel.receive()
        channel.close()

    trio.run(run)
