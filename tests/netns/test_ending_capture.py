"""When capture ends, what it carries ends with it, and at once: a program that only reads hears of it as well.

What is captured is translated, and a reset of the agent's reaches the program only as long as the translation stands.
Nobody on these machines translates but us, unless a test says so: then the kernel drops it with our table.
"""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from agent.lab.mesh import Node
from agent.lab.place import Place
from agent.lab.topology import Host, Machine
from agent.worker.letting_go import NO_MORE
from tests.netns import traffic
from tests.netns.node import API, WEB, Pair, pair, soon, workload

OTHERS = "table ip engine { chain nat { type nat hook postrouting priority 100; }; }"
"""Somebody else's translation, as container engines have it."""


@dataclass(frozen=True)
class Way:
    """Whose connection is captured, at which node, and what has to be enrolled for it."""

    name: str
    caller: Callable[[Pair], Place]
    node: Callable[[Pair], Node]
    enrolled: tuple[str, ...]
    last: str

    def __str__(self) -> str:
        return self.name


OUT = Way("out", lambda two: Place(two.one.machine.namespace, WEB), lambda two: two.one, ("web", "api"), "web")
ARRIVING = Way("arriving", lambda two: Place(two.one.machine.namespace, WEB), lambda two: two.two, ("api",), "api")
INSIDE = Way("inside", lambda two: Place(two.pod.namespace), lambda two: two.two, ("pod", "api"), "pod")
WAYS = (OUT, ARRIVING, INSIDE)


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


@asynccontextmanager
async def reading(two: Pair, way: Way) -> AsyncIterator[trio.SocketStream]:
    """A connection that is captured, whose program has read the greeting."""
    stream = await traffic.dial(way.caller(two), two.two.machine.address, 9090)
    async with stream:
        greeting = b""
        while not greeting.endswith(b"\n"):
            greeting += await traffic.read_exactly(stream, 1)
        assert await carried(two, way)
        yield stream


async def carried(two: Pair, way: Way) -> bool:
    async def there() -> bool:
        rows = (await two.ask(way.node(two), "connections"))["live"]
        return bool(rows)

    return await soon(there)


async def reset(stream: trio.SocketStream, seconds: float = 10) -> None:
    """Assert that whoever only reads hears of the end."""
    with trio.fail_after(seconds), pytest.raises(trio.BrokenResourceError) as caught:
        await traffic.read_all(stream)
    assert isinstance(caught.value.__cause__, ConnectionResetError)


async def gone(two: Pair, where: Machine | Host) -> bool:
    """Whether our table is no longer there, soon after the reset."""

    async def bare() -> bool:
        return not await two.rules(where)

    return await soon(bare)


async def unenrolled(two: Pair, way: Way) -> None:
    await two.enrol(way.last, value=None)


async def off(two: Pair, way: Way) -> None:
    await two.mesh.on(way.node(two), "capture", "off")


async def left(two: Pair, way: Way) -> None:
    await two.mesh.on(way.node(two), "agent", "leave")


@pytest.mark.parametrize("way", WAYS, ids=str)
@pytest.mark.parametrize("ends", [unenrolled, off, left])
async def test_a_program_that_only_reads_is_reset(
    two: Pair, way: Way, ends: Callable[[Pair, Way], Awaitable[None]]
) -> None:
    await two.enrol(*way.enrolled)
    async with reading(two, way) as stream:
        await ends(two, way)
        await reset(stream)
        assert await gone(two, two.pod if way is INSIDE else way.node(two).machine)


@pytest.mark.parametrize("way", [OUT, ARRIVING], ids=str)
async def test_the_end_of_a_trial(two: Pair, way: Way) -> None:
    """The kernel ends the taking, and translates what it took until the agent tidies up."""
    await two.mesh.on(way.node(two), "capture", "off")
    await two.enrol(*way.enrolled)
    await two.mesh.on(way.node(two), "capture", "apply", "--confirm", "8s")
    async with reading(two, way) as stream:
        process = way.node(two).process
        assert process
        process.signal(signal.SIGSTOP)
        await trio.sleep(9)
        await stream.send_all(b"ho")
        assert await traffic.read_exactly(stream, 2) == b"ho"
        process.signal(signal.SIGCONT)
        await reset(stream)
        assert await gone(two, way.node(two).machine)


async def test_beside_others_that_translate(two: Pair) -> None:
    """It ends all the same: nobody has to ask whose tables stand there."""
    await two.nft(two.one.machine, OTHERS)
    await two.enrol(*OUT.enrolled)
    async with reading(two, OUT) as stream:
        await off(two, OUT)
        await reset(stream)
    closed = (await two.ask(two.one, "connections"))["closed"]
    assert [(c["reason"], c["verdict"]) for c in closed] == [(NO_MORE, "failed")]


@pytest.mark.parametrize("mode", ["preserve", "agent"])
async def test_what_came_out_of_a_tunnel_goes_on_unless_its_address_is_borrowed(two: Pair, mode: str) -> None:
    await two.apply(workload("api", "two", {"uid": API}, 9090, source_address=mode))
    await two.enrol()
    async with reading(two, OUT) as stream:
        await off(two, ARRIVING)
        if mode == "preserve":
            await reset(stream)
        else:
            await stream.send_all(b"ho")
            assert await traffic.read_exactly(stream, 2) == b"ho"
    # Nothing of this outlives the switch.
    await two.mesh.on(two.two, "capture", "on")
    assert await soon(lambda: _talks(two), 10)


async def _talks(two: Pair) -> bool:
    return (await two.talk()).endswith("ho")


async def test_what_is_captured_again_is_carried_again(two: Pair) -> None:
    await two.enrol()
    for _ in range(3):
        async with reading(two, OUT) as stream:
            await two.enrol("web", value=None)
            await reset(stream)
        await two.enrol("web")
        async with reading(two, OUT) as stream:
            await off(two, OUT)
            await reset(stream)
        await two.mesh.on(two.one, "capture", "on")
