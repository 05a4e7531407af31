"""The relay itself: rounds, order, descriptors that come and go."""

import os
import re
import resource
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from agent.relay.loop import EDGE, READ, Relay
from tests.agent.relay.rig import descriptors, soon


class _Flush:
    def __init__(self, action) -> None:
        self.flush = action


async def test_a_round_is_events_then_again_then_flush():
    relay, order = Relay(), []
    near, far = socket.socketpair()

    def ready(mask: int) -> None:
        near.recv(10)
        relay.gathered(_Flush(lambda: order.append("flush")))
        relay.again(lambda: order.append("again"))
        order.append("event")

    relay.register(near.fileno(), ready, READ | EDGE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        far.send(b"x")
        await soon(lambda: "flush" in order)
        assert order == ["event", "again", "flush"]
        nursery.cancel_scope.cancel()
    near.close(), far.close()


async def test_work_left_from_outside_wakes_it():
    relay, done = Relay(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        await trio.testing.wait_all_tasks_blocked()
        relay.again(lambda: done.append("again"))
        await soon(lambda: bool(done))
        await trio.testing.wait_all_tasks_blocked()
        relay.gathered(_Flush(lambda: done.append("flush")))
        await soon(lambda: len(done) == 2)
        assert done == ["again", "flush"]
        nursery.cancel_scope.cancel()


async def test_a_number_that_is_another_socket_by_now_is_not_told_of_the_old_ones_events():
    """In one round: A's handler closes B, and a new socket gets B's number; B's event was already fetched."""
    relay, told = Relay(), []
    pairs = [socket.socketpair() for _ in range(4)]
    fresh: list[socket.socket] = []
    numbers = [near.fileno() for near, _ in pairs]

    def first(which: int):
        def ready(mask: int) -> None:
            told.append(("old", which))
            if fresh:
                return
            for other, (near, _) in enumerate(pairs):
                if other != which:
                    relay.unregister(near.fileno())
                    near.close()
                    replacement = socket.socket()
                    fresh.append(replacement)
                    number = replacement.fileno()
                    assert number in numbers
                    relay.register(number, lambda mask, n=number: told.append(("new", n, mask)), READ | EDGE)

        return ready

    for which, (near, far) in enumerate(pairs):
        relay.register(near.fileno(), first(which), READ | EDGE)
        far.send(b"x")
    relay._running = True
    relay._round()
    relay._running = False
    assert len(fresh) == 3
    assert [t for t in told if t[0] == "new"] == []
    assert len(told) == 1
    relay._epoll.close()
    os.close(relay._bell)
    for near, far in pairs:
        near.close(), far.close()
    for sock in fresh:
        sock.close()


async def test_other_tasks_get_a_turn_while_connections_are_always_ready():
    relay, turns = Relay(), 0

    def forever() -> None:
        relay.again(forever)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(relay.run)
        relay.again(forever)
        for _ in range(20):
            await trio.lowlevel.checkpoint()
            turns += 1
        nursery.cancel_scope.cancel()
    assert turns == 20


async def test_it_leaves_no_descriptor_behind():
    before = descriptors()
    async with trio.open_nursery() as nursery:
        relay = Relay()
        nursery.start_soon(relay.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert descriptors() == before


def test_trio_is_the_guest_of_a_relay_that_hosts_it():
    """What a handler starts in trio runs, and so do trio's own timers while no descriptor is ready."""
    relay, order = Relay(), []
    near, far = socket.socketpair()

    async def main() -> None:
        done = trio.Event()

        async def answer() -> None:
            order.append(near.recv(10))
            await trio.sleep(0.01)
            order.append("slept")
            done.set()

        async with trio.open_nursery() as nursery:
            relay.register(near.fileno(), lambda _mask: nursery.start_soon(answer), READ | EDGE)
            await trio.sleep(0.01)
            far.send(b"x")
            with trio.fail_after(5):
                await done.wait()

    relay.host(main)
    near.close(), far.close()
    assert order == [b"x", "slept"]


def test_hosting_ends_with_what_main_raised_and_leaves_no_descriptor():
    before = descriptors()

    async def main() -> None:
        await trio.lowlevel.checkpoint()
        raise ValueError("over")

    with pytest.raises(ValueError, match="over"):
        Relay().host(main)
    assert descriptors() == before


def test_a_host_has_room_for_all_its_descriptors_before_it_has_a_second_thread():
    """Else the kernel stops it for a grace period of RCU at the 65th connection, the 129th, ..."""
    rooms = []

    async def main() -> None:
        await trio.lowlevel.checkpoint()
        status = Path("/proc/self/status").read_text()
        rooms.append(int(re.search(r"^FDSize:\s+(\d+)$", status, re.MULTILINE)[1]))

    before = descriptors()
    Relay().host(main)
    assert rooms[0] >= min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 2**16)
    assert descriptors() == before


def test_bytes_move_while_trio_is_busy_waiting_for_something_else():
    """A relay as busy as can be starves no task of trio's, nor they it."""
    relay, turns = Relay(), 0

    def spin() -> None:
        nonlocal turns
        turns += 1
        relay.again(spin)

    async def main() -> None:
        relay.again(spin)
        for _ in range(20):
            await trio.sleep(0.001)

    relay.host(main)
    assert turns > 20
