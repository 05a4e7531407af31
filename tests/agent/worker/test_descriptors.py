"""A worker that has as many descriptors open as it may: a process of its own, with a low limit of the kernel."""

import os
import resource
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from agent.channel import supervisor_end
from agent.messages import Configure, Inquire, Listen, Namespaced, Ready, Role, Roots, Stock, StockWanted, Tables
from agent.worker.stock import FULL
from ca import x509
from tests.agent.relay.rig import authority, soon

LIMIT = 256


class Boss:
    """The supervisor of a worker that may have LIMIT descriptors."""

    def __init__(self, channel, process: subprocess.Popen) -> None:
        self.channel, self.process = channel, process

    async def hear(self, kind):
        with trio.fail_after(20):
            while not isinstance(message := (await self.channel.receive())[0], kind):
                pass
        return message

    async def answers(self) -> bool:
        await self.channel.send(Inquire(1))
        return (await self.hear(Tables)).id == 1

    async def deliver(self, family: int) -> None:
        socks = [socket.socket(family) for _ in range(FULL)]
        await self.channel.send(Stock("shop/db", family), [s.fileno() for s in socks])
        for sock in socks:
            sock.close()

    def open(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def start(sock: socket.socket) -> subprocess.Popen:
    limit = (LIMIT, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    return subprocess.Popen(
        [sys.executable, "-c", f"from agent.worker.worker import serve; serve({sock.fileno()})"],
        pass_fds=[sock.fileno()],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, limit),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


@pytest.fixture
async def boss() -> AsyncIterator[Boss]:
    ours, theirs = socket.socketpair()
    process = start(theirs)
    theirs.close()
    channel = supervisor_end(ours)
    the_boss = Boss(channel, process)
    await channel.send(Configure("n1", 3, 0xC0170001, 0, os.getuid(), os.getgid()))
    await the_boss.hear(Ready)
    await channel.send(Roots(x509.pem(authority().cert)))
    yield the_boss
    channel.close()
    try:
        process.wait(10)
    finally:
        process.kill()
        process.wait()


@asynccontextmanager
async def crowd(boss: Boss) -> AsyncIterator[None]:
    """As many connections as it takes, and more."""
    with socket.create_server(("127.0.0.1", 0), backlog=LIMIT) as sock:
        await boss.channel.send(Listen(1, Role.TUNNEL, ""), [sock.fileno()])
        callers = [socket.create_connection(sock.getsockname()) for _ in range(LIMIT)]
        before = 0
        while before != (before := boss.open()):  # noqa: ASYNC110 - there is no event for it
            await trio.sleep(0.3)
        yield
        for caller in callers:
            caller.close()


async def test_sockets_for_its_stock_that_it_has_no_room_for_are_ordered_again(boss):
    await boss.channel.send(Namespaced(["shop/db"]))
    families = {(await boss.hear(StockWanted)).family for _ in range(2)}
    idle = boss.open()
    async with crowd(boss):
        full = boss.open()
        for family in families:
            await boss.deliver(family)
        assert await boss.answers()
        assert boss.open() <= full + FULL
    again = await boss.hear(StockWanted)
    assert (again.workload, again.count) == ("shop/db", FULL)
    await soon(lambda: boss.open() == idle + 1)
    await boss.deliver(again.family)
    assert await boss.answers()
    assert boss.open() == idle + 1 + FULL
