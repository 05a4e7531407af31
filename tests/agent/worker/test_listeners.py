"""Accepting in the relay."""

import errno
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest
import trio

from agent.messages import Role
from agent.relay.loop import Relay
from agent.worker.listeners import _PASSING, Listeners
from tests.agent.relay.rig import descriptors, soon


class Door:
    def __init__(self, relay: Relay) -> None:
        self.got: list[tuple[Role, str, socket.socket, tuple]] = []
        self.listeners = Listeners(
            relay, {role: lambda name, sock, peer, r=role: self.got.append((r, name, sock, peer)) for role in Role}
        )
        self.addresses: list[tuple[str, int]] = []

    def add(self, number: int, role: Role, workload: str = "") -> None:
        sock = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.addresses.append(sock.getsockname())
        self.listeners.add(number, role, workload, sock)


@asynccontextmanager
async def door():
    before = descriptors()
    async with trio.open_nursery() as nursery:
        relay = Relay()
        nursery.start_soon(relay.run)
        the_door = Door(relay)
        yield the_door
        the_door.listeners.close()
        for _, _, sock, _ in the_door.got:
            sock.close()
        assert list(relay._handlers) == [relay._bell]
        nursery.cancel_scope.cancel()
    assert descriptors() == before


async def test_each_connection_comes_with_its_role_and_workload():
    async with door() as d:
        d.add(1, Role.OUTBOUND, "shop/web")
        d.add(2, Role.TUNNEL)
        callers = [socket.create_connection(a) for a in d.addresses]
        await soon(lambda: len(d.got) == 2)
        assert sorted((r.value, n) for r, n, _, _ in d.got) == [("outbound", "shop/web"), ("tunnel", "")]
        assert {p for _, _, _, p in d.got} == {c.getsockname() for c in callers}
        assert not any(s.getblocking() for _, _, s, _ in d.got)
        assert all(s.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for _, _, s, _ in d.got)
        for caller in callers:
            caller.close()


async def test_a_storm_is_taken_whole_and_callers_that_hang_up_at_once_do_no_harm():
    async with door() as d:
        d.add(1, Role.PLAINTEXT)
        callers = []
        for i in range(500):
            caller = socket.create_connection(d.addresses[0])
            if i % 3 == 0:
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                caller.close()
            else:
                callers.append(caller)
        await soon(lambda: len(d.got) == 500)
        assert {peer for _, _, _, peer in d.got} >= {caller.getsockname() for caller in callers}
        for caller in callers:
            caller.close()


async def test_removed_listeners_accept_no_more_and_close_their_end_only():
    async with door() as d:
        kept = socket.create_server(("127.0.0.1", 0))
        d.listeners.add(7, Role.TUNNEL, "", kept.dup())
        d.listeners.remove(7)
        d.listeners.remove(7)
        with socket.create_connection(kept.getsockname()):
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            assert d.got == []
            kept.accept()[0].close()  # it waited in the queue of the one who keeps it
        kept.close()


async def test_the_same_number_replaces():
    async with door() as d:
        d.add(1, Role.TUNNEL)
        d.add(1, Role.TUNNEL)
        with socket.create_connection(d.addresses[1]) as caller:
            await soon(lambda: len(d.got) == 1)
            assert d.got[0][3] == caller.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(d.addresses[0])


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """As if the process had as many open as it may."""
    fillers = [os.dup(0)]
    top = max(map(int, os.listdir("/proc/self/fd")))
    while fillers[-1] < top:
        fillers.append(os.dup(0))  # no gaps below
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fillers[-1] + 1, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in fillers:
            os.close(fd)


async def test_with_few_descriptors_left_it_rests_after_each_connection():
    async with door() as d:
        d.add(1, Role.TUNNEL)
        d.listeners._last = 0
        callers = [socket.create_connection(d.addresses[0]) for _ in range(2)]
        for count in (1, 2):
            await soon(lambda: len(d.listeners._resting) == 1)
            assert len(d.got) == count
            d.listeners.resume()
        for caller in callers:
            caller.close()


async def test_without_descriptors_it_rests_and_callers_wait_in_the_queue():
    async with door() as d:
        d.add(1, Role.TUNNEL)
        caller = socket.socket()
        relay, rounds = d.listeners._relay, 0
        real = relay._round

        def counted() -> bool:
            nonlocal rounds
            rounds += 1
            return real()

        with no_descriptors_left():
            caller.connect(d.addresses[0])
            await soon(lambda: len(relay._handlers) == 1)
            relay._round = counted
            for _ in range(50):
                await trio.lowlevel.checkpoint()
            assert rounds <= 2  # it does not spin
            d.listeners.resume()  # still short
            await soon(lambda: len(relay._handlers) == 1 and rounds > 0)
            assert d.got == []
        d.listeners.resume()
        await soon(lambda: len(d.got) == 1)
        caller.close()


async def test_a_resting_listener_can_be_removed():
    async with door() as d:
        d.add(1, Role.TUNNEL)
        caller = socket.socket()
        with no_descriptors_left():
            caller.connect(d.addresses[0])
            await soon(lambda: len(d.listeners._relay._handlers) == 1)
        d.listeners.remove(1)
        d.listeners.resume()
        assert len(d.listeners._relay._handlers) == 1  # the bell: it did not come back
        assert d.got == []
        caller.close()


def test_network_errors_of_a_new_connection_are_passed_over():
    """As accept(2) lists them for Linux."""
    for name in ("ENETDOWN", "EPROTO", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH", "EOPNOTSUPP"):
        assert getattr(errno, name) in _PASSING


async def test_who_storms_waits_in_its_own_queue_and_its_neighbour_does_not():
    async with door() as d:
        d.add(1, Role.OUTBOUND, "shop/web")
        d.add(2, Role.OUTBOUND, "shop/db")
        storming = {(Role.OUTBOUND, "shop/web"), (Role.PLAINTEXT, "shop/db")}
        d.listeners.storming = storming
        callers = [socket.create_connection(d.addresses[0]) for _ in range(5)]
        await soon(lambda: len(d.got) == 1)  # the one by which it is noticed
        callers += [socket.create_connection(d.addresses[1]) for _ in range(5)]
        await soon(lambda: [n for _, n, _, _ in d.got].count("shop/db") == 5)
        assert [n for _, n, _, _ in d.got].count("shop/web") == 1
        storming.clear()
        d.listeners.resume()
        await soon(lambda: len(d.got) == 10)
        d.listeners.storming = {(Role.OUTBOUND, "shop/web")}
        callers.append(socket.create_connection(d.addresses[0]))
        await soon(lambda: len(d.got) == 11)
        d.listeners.remove(1)  # while it rests
        for caller in callers:
            caller.close()
