"""A worker of ours, driven as its supervisor would."""

import os
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

import msgspec
import trio

import agent
from agent.channel import supervisor_end
from agent.connections import Connection
from agent.lab.lab import Lab
from agent.lab.place import Place
from agent.lab.process import Process
from agent.lab.topology import Machine
from agent.messages import TO_WORKER, Active, Closed, Inquire, Notice, Ready, Tables

_T = TypeVar("_T")


class OurWorker:
    """A process; it ends with its lab. What it says is read when a test asks for it, in whatever event loop that is."""

    def __init__(self, lab: Lab, machine: Machine, name: str) -> None:
        near, far = socket.socketpair()
        with far:
            self.process = Process(
                name,
                Place(machine.namespace),
                [sys.executable, "-m", "agent.worker", str(far.fileno())],
                lab.directory / f"{name}.log",
                {"PYTHONPATH": str(Path(agent.__file__).parents[1])},
                pass_fds=[far.fileno()],
            )
        lab.processes.append(self.process)
        self._channel = supervisor_end(near)
        self._since = 0.0
        self._closed: list[Connection] = []
        self._others: list[msgspec.Struct] = []
        self._asked = 0

    async def say(self, message: TO_WORKER, fds: Iterable[int] = ()) -> None:
        await self._channel.send(message, list(fds))

    async def ready(self) -> None:
        """Wait until it serves and acts on the view."""
        await self._said(lambda m: isinstance(m, Ready))
        await self._said(lambda m: isinstance(m, Active))

    async def forget(self) -> None:
        """Nothing that has happened so far counts any more."""
        await self.tables()
        self._since = time.time()
        self._closed.clear()
        self._others.clear()

    async def tables(self) -> Tables:
        """Its live connections and tunnels."""
        self._asked += 1
        await self.say(Inquire(self._asked))
        found = await self._said(lambda m: isinstance(m, Tables) and m.id == self._asked)
        assert isinstance(found, Tables)
        return found

    async def record(self, port: int | None, skip: int = 0) -> Connection:
        """Of the connections to `port` (None: to nowhere) that have ended, the first or the one after `skip`."""

        def found() -> list[Connection]:
            there = [c for c in self._closed if c.opened >= self._since]
            return [c for c in there if c.destination.address.rpartition(":")[2] == str(port or "")]

        await self._until(lambda: len(found()) > skip, f"end a connection to port {port}")
        return found()[skip]

    async def notice(self, event: str, reason: str) -> Notice:
        """The first notice of an event whose reason contains a text."""
        said = await self._said(
            lambda m: isinstance(m, Notice) and m.event == event and reason in m.facts.get("reason", "")
        )
        assert isinstance(said, Notice)
        return said

    async def _said(self, fits: Callable[[msgspec.Struct], bool]) -> msgspec.Struct:
        await self._until(lambda: any(map(fits, self._others)), "say what was waited for")
        found = next(m for m in self._others if fits(m))
        self._others.remove(found)
        return found

    async def _until(self, done: Callable[[], bool], what: str) -> None:
        with trio.move_on_after(10):
            while not done():
                message, fds = await self._channel.receive()
                for fd in fds:
                    os.close(fd)
                if isinstance(message, Closed):
                    self._closed += message.connections
                else:
                    self._others.append(message)
            return
        raise AssertionError(
            f"the worker did not {what}; it said {self._others[-5:]}, ended {self._closed[-5:]} and printed:\n"
            + self.process.tail()
        )

    async def close(self) -> None:
        """Let go of it: it ends by itself."""
        self._channel.close()
