"""Many connections at once over one tunnel, by plans that Hypothesis draws.

What is checked of each connection and direction: nothing arrives that was not written, in order; all of it arrives
where neither side reset the connection; where one did, the other side never sees a clean end that was not written.
"""

import errno
import socket
from dataclasses import dataclass, field

import trio
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.agent.relay.rig import Conn, Rig, reset, rig, soon

PATTERN = bytes(i * 7 % 251 for i in range(251 * 9000))  # 251 is prime: a piece that is missing or doubled shows


@dataclass
class Way:
    """One direction of one connection."""

    written: int = 0
    finished: bool = False  # its writer ended it in order
    got: int = 0
    ended: str = ""  # "eof" or "reset", as its reader saw it


@dataclass
class Talk:
    """One connection, and what happened on it so far."""

    conn: Conn
    number: int
    there: Way = field(default_factory=Way)
    back: Way = field(default_factory=Way)
    reset: bool = False
    told: set[str] = field(default_factory=set)  # ends whose writer was told of a reset: the kernel tells only once

    def expected(self, way: Way, count: int) -> bytes:
        start = (self.number * 31 + (way is self.back) * 17 + way.got) % 251
        return PATTERN[start : start + count]


SIZES = st.one_of(st.integers(0, 20), st.integers(0, 5000), st.integers(60_000, 70_000), st.integers(0, 2**20))
ACTS = st.tuples(st.sampled_from(["write", "write", "write", "end", "reset", "pause", "turn"]), SIZES)
SCRIPTS = st.lists(ACTS, max_size=8)


@dataclass(frozen=True)
class Plan:
    """What the two ends of a connection do. `idle` is how many turns a reader waits before it reads at all."""

    near: list[tuple[str, int]]
    far: list[tuple[str, int]]
    near_idle: int
    far_idle: int
    small: bool


PLANS = st.lists(
    st.builds(Plan, SCRIPTS, SCRIPTS, st.integers(0, 30), st.integers(0, 30), st.booleans()), min_size=1, max_size=20
)


async def write(talk: Talk, way: Way, sock: trio.socket.SocketType, script: list[tuple[str, int]]) -> None:
    start = talk.number * 31 + (way is talk.back) * 17
    try:
        for act, size in script:
            if act == "write":
                at = (start + way.written) % 251
                data = memoryview(PATTERN)[at : at + size]
                while data:
                    n = await sock.send(data)
                    way.written += n
                    data = data[n:]
            elif act == "end":
                break
            elif act == "reset":
                talk.reset = True
                reset(sock)
                return
            else:
                for _ in range(size % 20):
                    await trio.lowlevel.checkpoint()
        sock.shutdown(socket.SHUT_WR)
        way.finished = True
    except (ConnectionResetError, BrokenPipeError):
        talk.told.add("near" if way is talk.there else "far")
    except trio.ClosedResourceError:
        pass
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.ENOTCONN):
            raise


async def read(talk: Talk, way: Way, sock: trio.socket.SocketType, idle: int) -> None:
    for _ in range(idle):
        await trio.lowlevel.checkpoint()
    try:
        while True:
            data = await sock.recv(200_000)
            if not data:
                way.ended = "eof"
                return
            assert data == talk.expected(way, len(data)), "it was not written like that"
            way.got += len(data)
    except (ConnectionResetError, trio.ClosedResourceError):
        way.ended = "reset"
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        way.ended = "reset"


async def carry_out(r: Rig, plan: Plan, number: int, talks: list[Talk]) -> None:
    conn = r.call(sndbuf=4096 if plan.small else 0)
    far = await r.accept(conn)
    talk = Talk(conn, number)
    talks.append(talk)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, talk, talk.there, conn.near, plan.near)
        nursery.start_soon(write, talk, talk.back, far, plan.far)
        nursery.start_soon(read, talk, talk.there, far, plan.far_idle)
        nursery.start_soon(read, talk, talk.back, conn.near, plan.near_idle)


@settings(
    max_examples=settings.default.max_examples // 4,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(PLANS, st.sampled_from([0, 0, 5000]))
@example([Plan([("write", 2**20), ("reset", 0)], [("write", 2**20)], 0, 0, False)] * 20, 0)
@example([Plan([("write", 2**20)], [("end", 0)], 0, 30, True)] * 20, 5000)
@example([Plan([("end", 0)], [("write", 2**20)] * 3, 30, 0, True)] * 20, 5000)
async def test_plans(plans, buffers):
    talks: list[Talk] = []
    with trio.fail_after(60):
        async with rig(sndbuf=buffers, rcvbuf=buffers) as r:
            await soon(lambda: r.out.core.settled)
            async with trio.open_nursery() as nursery:
                for number, plan in enumerate(plans):
                    nursery.start_soon(carry_out, r, plan, number, talks)
    for talk in talks:
        for way, reader in ((talk.there, "far"), (talk.back, "near")):
            assert way.ended, talk
            assert way.got <= way.written, talk
            if way.ended == "eof" and reader not in talk.told:
                assert way.finished, f"a clean end that nobody wrote: {talk}"
                assert way.got == way.written, talk
            if not talk.reset:
                assert way.ended == "eof", f"a reset out of nothing: {talk}"
