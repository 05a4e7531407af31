"""One workload's storm costs itself: it is refused, and its neighbour goes on at its rate."""

import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place
from agent.worker.budgets import STORM
from tests.netns import traffic
from tests.netns.test_exclusions import said
from tests.netns.town import Town

WORKERS = 2
"""Together they keep one limit, whichever of them the kernel gives a connection to."""

SERVER = """
import socket, sys, threading
listening = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=1024)
def serve():
    while True:
        sock, _ = listening.accept()
        try:
            while data := sock.recv(100):
                sock.sendall(data)
        except OSError:
            pass
        sock.close()
for _ in range(16):
    threading.Thread(target=serve).start()
"""

LOOP = """
import socket, sys, threading, time
address, seconds = (sys.argv[1], int(sys.argv[2])), float(sys.argv[3])
end, done = time.monotonic() + seconds, [0] * 4
def loop(me):
    while time.monotonic() < end:
        with socket.create_connection(address, 5) as sock:
            sock.sendall(b"ping")
            assert sock.recv(100) == b"ping"
        done[me] += 1
threads = [threading.Thread(target=loop, args=(n,)) for n in range(len(done))]
for t in threads: t.start()
for t in threads: t.join()
print(sum(done))
"""
"""How many exchanges, each over a connection of its own, four at a time come to in some seconds."""

FLOOD = """
import socket, sys, time
address, rate = (sys.argv[1], int(sys.argv[2])), int(sys.argv[3])
start, count, waiting = time.monotonic(), 0, []
while time.monotonic() - start < 120:
    while count < (time.monotonic() - start) * rate:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(address)
        waiting.append(sock)
        count += 1
        if len(waiting) > 200:
            waiting.pop(0).close()
    time.sleep(0.005)
"""
"""So many connections a second, whatever becomes of them; each is dropped when two hundred newer ones have come."""

LIMITS = "limits: {connectionsPerSecond: 20, connections: 50}"
FLOODED = 1000


@asynccontextmanager
async def serving(town: Town, name: str) -> AsyncIterator[None]:
    resident = town[name]
    argv = [programs.SYSTEM_PYTHON, "-c", SERVER, resident.address, str(resident.port)]
    process = town.lab.start(f"server-{name}", resident.server, argv)
    try:
        await process.listening(resident.port)
        yield
    finally:
        await process.kill()
        town.lab.processes.remove(process)


@asynccontextmanager
async def flooding(town: Town, source: Place, server: str) -> AsyncIterator[None]:
    resident = town[server]
    argv = [programs.SYSTEM_PYTHON, "-c", FLOOD, resident.address, str(resident.port), str(FLOODED)]
    process = town.lab.start(f"flood-{server}", source, argv)
    try:
        await trio.sleep(0.5)
        yield
    finally:
        await process.kill()
        town.lab.processes.remove(process)


async def rate(town: Town, name: str, server: str, seconds: float = 1.0) -> int:
    resident = town[server]
    ran = await programs.run(
        town[name].place,
        [programs.SYSTEM_PYTHON, "-c", LOOP, resident.address, str(resident.port), str(seconds)],
        seconds + 20,
    )
    assert ran.ok, ran.errors
    return int(ran.output)


async def kept(town: Town, neighbour: str, source: Place, server: str = "mail", rounds: int = 3) -> float:
    """What is left of a neighbour's rate beside a flood; both are measured in turn, since the machine is not ours."""
    alone = beside = 0
    for _ in range(rounds):
        alone += await rate(town, neighbour, "db")
        async with flooding(town, source, server):
            beside += await rate(town, neighbour, "db")
    print(f"alone {alone / rounds:.0f} exchanges a second, beside a flood of {FLOODED} {beside / rounds:.0f}")
    return beside / alone


async def over(town: Town, node: str, workload: str) -> float:
    """Connections that the workload's limits refused, as the metrics have it."""

    def page() -> str:
        with urllib.request.urlopen("http://127.0.0.1:15020/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    text = (town.one if node == "one" else town.two).namespace.run(page)
    found = [x for x in text.splitlines() if "culvert_over_budget" in x and f'workload="{workload}"' in x]
    return sum(float(x.split()[-1]) for x in found)


async def rested(town: Town, node: str, workload: str) -> float:
    """The same, once it has come to rest: what a flood has left in a queue is refused after its end."""
    last = -1.0
    with trio.fail_after(30):
        while (now := await over(town, node, workload)) != last:
            last = now
            await trio.sleep(1)
    return now


@pytest.mark.slow
@pytest.mark.alone
async def test_a_flood_takes_at_most_a_fifth_of_the_neighbours_rate(town: Town) -> None:
    async with serving(town, "db"), serving(town, "mail"):
        async with said(town, "web", LIMITS):
            best = 0.0
            for _ in range(3):  # whatever else runs on this machine
                best = max(best, await kept(town, "front", town["web"].place))
                if best >= 0.8:
                    break
            assert best >= 0.8
            assert await over(town, "one", "shop/web") > 1000
        await rested(town, "one", "shop/web")


def flooder(town: Town, name: str) -> Place:
    """Where a flood begins: a resident, or else a stranger."""
    return town[name].place if name in town.residents else Place(town.far.namespace)


INTO = pytest.mark.parametrize(
    ("source", "server", "neighbour"), [("six", "mail", "store"), ("web", "mail", "store"), ("far", "store", "six")]
)
"""A neighbour floods one that shares the socket for arrivals, so does one on another node, and a stranger one that has
a socket of its own."""


@pytest.mark.slow
@pytest.mark.alone
@INTO
async def test_a_flood_into_a_workload_takes_at_most_a_fifth_of_anothers_rate(
    town: Town, source: str, server: str, neighbour: str
) -> None:
    async with serving(town, "db"), serving(town, server), said(town, server, LIMITS):
        best = 0.0
        for _ in range(3):  # whatever else runs on this machine
            best = max(best, await kept(town, neighbour, flooder(town, source), server))
            if best >= 0.8:
                break
        assert best >= 0.8
        await rested(town, "two", f"shop/{server}")


@pytest.mark.slow
@INTO
async def test_a_flood_into_a_workload_waits_in_a_queue_of_its_own(
    town: Town, source: str, server: str, neighbour: str
) -> None:
    """The flood costs refusals, which are bounded: on a machine that others use too that is surer than a rate."""
    async with serving(town, "db"), serving(town, server), said(town, server, LIMITS):
        async with flooding(town, flooder(town, source), server):
            before, began = await over(town, "two", f"shop/{server}"), trio.current_time()
            for _ in range(4):
                assert await rate(town, neighbour, "db") > 0  # every exchange succeeds
            refused = await over(town, "two", f"shop/{server}") - before
            seconds = trio.current_time() - began
        await rested(town, "two", f"shop/{server}")
        # One more each: by it a listener notices that it should rest.
        assert 0 < refused <= WORKERS * (STORM + 1) * (seconds + 2) < FLOODED * seconds


async def test_over_a_limit_means_refused_at_once_and_told(town: Town) -> None:
    db = town["db"]
    before = await over(town, "one", "shop/web")
    async with (
        traffic.serving(db.server, db.address, db.port, traffic.echo),
        said(town, "web", "limits: {connections: 3}"),
    ):
        streams = [await traffic.dial(town["web"].place, db.address, db.port) for _ in range(3)]
        for stream in streams:
            await stream.send_all(b"ping")
            assert await traffic.read_exactly(stream, 4) == b"ping"
        with trio.fail_after(2):
            assert await traffic.refused(town["web"].place, db.address, db.port)
        record = await town.record("one", direction="outbound", source__workload="shop/web", state="closed")
        assert (record["verdict"], record["over_budget"]) == ("refused", True)
        assert record["reason"] == "over its budget: 3 connections are open"
        assert record["source"]["identity"] == "spiffe://demo.example/ns/shop/sa/web"
        assert record["destination"] == {
            "workload": "shop/db",
            "identity": "spiffe://demo.example/ns/shop/sa/db",
            "address": f"{db.address}:{db.port}",
        }
        table = await town.mesh.on(town.node("one"), "connections")
        assert "over its budget" in " ".join(table.split())
        assert await over(town, "one", "shop/web") == before + 1
        # The neighbour, and what arrives for the workload itself, have accounts of their own.
        assert await traffic.ask(town["front"].place, db.address, db.port) == b"ping"
        web = town["web"]
        async with traffic.serving(web.server, web.address, web.port, traffic.echo):
            assert await traffic.ask(town["store"].place, web.address, web.port) == b"ping"
        await streams.pop().aclose()
        with trio.fail_after(5):
            while await traffic.refused(town["web"].place, db.address, db.port):
                pass  # the end of the one that was closed is on its way
        for stream in streams:
            await stream.send_all(b"still")
            assert await traffic.read_exactly(stream, 5) == b"still"
            await stream.aclose()


async def test_limits_of_who_is_called_hold_for_all_who_call(town: Town) -> None:
    db = town["db"]
    outsider = Place(town.far.namespace)
    callers = {"web": town["web"].place, "store": town["store"].place, "far": outsider}
    async with (
        traffic.serving(db.server, db.address, db.port, traffic.echo),
        said(town, "db", "limits: {connections: 2}"),
    ):
        held = [await traffic.dial(place, db.address, db.port) for place in (callers["web"], outsider)]
        for stream in held:
            await stream.send_all(b"ping")
            assert await traffic.read_exactly(stream, 4) == b"ping"
        for name, place in callers.items():
            with trio.fail_after(3):
                assert await traffic.refused(place, db.address, db.port), name
        found = await town.records("two", direction="inbound", destination__workload="shop/db", over_budget=True)
        assert {r["security"] for r in found} == {"mtls", "local", "plaintext"}
        assert {r["verdict"] for r in found} == {"refused"}
        who = {r["security"]: (r["source"].get("workload", ""), r["source"].get("identity", "")) for r in found}
        assert who == {
            "mtls": ("shop/web", "spiffe://demo.example/ns/shop/sa/web"),
            "local": ("shop/store", "spiffe://demo.example/ns/shop/sa/store"),
            "plaintext": ("", ""),
        }
        for stream in held:
            await stream.aclose()


async def test_a_limit_in_the_mesh_holds_for_who_says_none(town: Town) -> None:
    db = town["db"]
    mesh = "kind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: demo.example, limits: {connections: 1}}\n"
    async with (
        traffic.serving(db.server, db.address, db.port, traffic.echo),
        town.mode(),
        said(town, "db", "limits: {connections: 100}"),
        said(town, "front", "limits: {connections: 2}"),
    ):
        await town.mesh.apply(mesh)
        for name, most in (("web", 1), ("front", 2)):
            streams = [await traffic.dial(town[name].place, db.address, db.port) for _ in range(most)]
            for stream in streams:
                await stream.send_all(b"ping")
                assert await traffic.read_exactly(stream, 4) == b"ping"
            assert await traffic.refused(town[name].place, db.address, db.port)
            for stream in streams:
                await stream.aclose()
