"""Noise on every port and socket of a node: plain HTTP, garbage, callers that dawdle. Traffic goes on beside it, and
afterwards nothing is different from before."""

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.lab.place import Place
from ca import http
from tests.netns import traffic
from tests.netns.node import soon
from tests.netns.town import Town

Door = Callable[[], Awaitable[trio.SocketStream]]

TEXTS = {
    "plain HTTP": b"GET /v1/status HTTP/1.1\r\nHost: x\r\n\r\n",
    "a bad request": b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "no HTTP": b"\x00\xff\r\n\r\n" * 200,
    "a long line": b"GET /" + b"a" * 100_000,
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(505),
    "random": os.urandom(65536),
}
SLOW = 20
"""Dawdling callers at once."""


def doors(town: Town) -> dict[str, Door]:
    """Every way to knock at node two."""
    two, far = town.two, Place(town.far.namespace)
    inside, stranger = Place(two.namespace), Place(two.namespace, 64999)
    db = town["db"]

    async def admin() -> trio.SocketStream:
        return await trio.open_unix_socket(town.node("two").directory / "run" / "agent.sock")

    process = town.node("two").process
    assert process is not None
    capture = min(port for port in process.ports() if 15100 <= port <= 15999)
    return {
        "tunnels": lambda: traffic.dial(far, two.address, 15008),
        "plaintext capture": lambda: traffic.dial(stranger, "127.0.0.1", 15006, 1),
        "outbound capture": lambda: traffic.dial(stranger, "127.0.0.1", capture, 1),
        "metrics": lambda: traffic.dial(inside, "127.0.0.1", 15020),
        "readiness": lambda: traffic.dial(inside, "127.0.0.1", 15021),
        "a workload that nobody serves": lambda: traffic.dial(far, two.address, db.port),
        "admin": admin,
    }


DOORS = ["tunnels", "plaintext capture", "outbound capture", "metrics", "readiness", "a workload that nobody serves"]


@asynccontextmanager
async def nothing_changes(town: Town) -> AsyncIterator[None]:
    """Workers, rules, revision and problems are afterwards as they were, and no connection is left."""
    before = await _state(town)
    yield
    await soon(lambda: _equals(town, before), 15)
    after = await _state(town)
    assert {key: (before[key], after[key]) for key in after if after[key] != before[key]} == {}


async def _state(town: Town) -> dict[str, object]:
    status = await _status(town)
    kept = ("worker_restarts", "workers", "active", "revision", "connections", "ready", "connected")
    found: dict[str, object] = {key: status.get(key) for key in kept}
    return found | {"problems": status.get("problems", []), "pids": _pids(town)}


async def _status(town: Town) -> dict[str, Any]:
    async with await trio.open_unix_socket(town.node("two").directory / "run" / "agent.sock") as stream:
        found = json.loads((await http.request(stream, "GET", "/v1/status", host="agent")).body)
    assert isinstance(found, dict)
    return found


def _pids(town: Town) -> set[str]:
    """The agent's workers. A child is listed with the thread that made it, and with another when that one ends."""
    process = town.node("two").process
    assert process is not None
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")
    return {pid for children in lists for pid in children.read_text().split()}


async def _equals(town: Town, before: dict[str, object]) -> bool:
    return await _state(town) == before


async def _say(door: Door, text: bytes) -> None:
    try:
        with trio.move_on_after(3):
            async with await door() as stream:
                await stream.send_all(text)
                while await stream.receive_some(65536):
                    pass
    except (*traffic.ENDED, TimeoutError, trio.TooSlowError):
        pass


@pytest.mark.parametrize("name", [*DOORS, "admin"])
async def test_noise(town: Town, name: str) -> None:
    door = doors(town)[name]
    db = town["db"]
    async with (
        nothing_changes(town),
        traffic.serving(db.server, db.address, db.port, traffic.echo),
        trio.open_nursery() as nursery,
    ):
        for text in TEXTS.values():
            nursery.start_soon(_say, door, text)
        for i in range(5):
            text = b"still %d" % i
            assert await traffic.ask(town["web"].place, db.address, db.port, text, 10) == text


@pytest.mark.parametrize("name", [*DOORS, "admin"])
async def test_dawdlers(town: Town, name: str) -> None:
    """Each says a line of something sensible, a byte every tenth of a second, for ever."""
    door = doors(town)[name]
    db = town["db"]
    words = b"\x16\x03\x01\x02\x00" if name == "tunnels" else b"GET /metrics HTTP/1.1\r\nHost: a"

    async def dawdle() -> None:
        try:
            async with await door() as stream:
                for byte in words:
                    await stream.send_all(bytes([byte]))
                    await trio.sleep(0.1)
                await trio.sleep_forever()
        except (*traffic.ENDED, TimeoutError, trio.TooSlowError):
            pass

    async with (
        nothing_changes(town),
        traffic.serving(db.server, db.address, db.port, traffic.echo),
        trio.open_nursery() as nursery,
    ):
        for _ in range(SLOW):
            nursery.start_soon(dawdle)
        for i in range(5):
            text = b"beside %d" % i
            assert await traffic.ask(town["web"].place, db.address, db.port, text, 10) == text
            assert (await _status(town))["ready"]
            await trio.sleep(0.2)
        nursery.cancel_scope.cancel()


async def test_noise_on_the_tunnel_port_stands_in_the_log(town: Town) -> None:
    process = town.node("two").process
    assert process is not None
    before = process.output().count("tunnel_refused")
    await _say(doors(town)["tunnels"], TEXTS["plain HTTP"])
    await process.until(lambda: process.output().count("tunnel_refused") > before, "say that it refused", 5)
    line = next(x for x in reversed(process.output().splitlines()) if "tunnel_refused" in x)
    assert "http request" in line
    assert town.far.address in line
