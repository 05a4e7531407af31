"""The Docker API, as Docker and Podman serve it on a Unix socket: what we ask of it, and its stream of events.

What comes back was partly written by whoever may start containers; every answer has a limit.
"""

import math
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import h11
import msgspec
import trio

from agent.discovery.tenants import Station
from ca import http

WITHIN = 10.0
"""Seconds for an answer."""
MOST_BYTES = 2**25
"""Bytes of an answer: a list of some ten thousand containers."""
MOST_LINE = 2**20
"""Bytes of one event."""
BEFORE = 2.0
"""Seconds of the past of which a stream of events tells first."""
PREFIX = "culvert.io/"
"""Labels that begin so are for us."""

_CARD = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_RESTING = ("created", "configured", "initialized", "exited", "stopped", "dead")
"""States in which no process runs, in the words of both engines."""
_EVENTS = '{"type":["container"]}'
_T = TypeVar("_T")


class EngineError(Exception):
    """The engine does not answer, or not as it should; the message says why. `absent` is set where there is none."""

    def __init__(self, why: str, absent: bool = False) -> None:
        super().__init__(why)
        self.absent = absent


class State(msgspec.Struct, frozen=True, rename="pascal"):
    """`pid` is 0 when it does not run."""

    pid: int = 0


class Network(msgspec.Struct, frozen=True):
    """Its addresses in one network, and the card that has them."""

    address: str = msgspec.field(name="IPAddress", default="")
    address6: str = msgspec.field(name="GlobalIPv6Address", default="")
    card: str = msgspec.field(name="MacAddress", default="")


class Networks(msgspec.Struct, frozen=True, rename="pascal"):
    """`sandbox_key` is a file of its network namespace, kept by the engine."""

    sandbox_key: str = ""
    networks: dict[str, Network] | None = None

    @property
    def stations(self) -> frozenset[Station]:
        """From where it sends, as far as the engine knows."""
        found = (self.networks or {}).values()
        return frozenset((a, n.card) for n in found for a in (n.address, n.address6) if a and _CARD.fullmatch(n.card))


class Listed(msgspec.Struct, frozen=True):
    """A container of the list."""

    id: str = msgspec.field(name="Id")
    state: str = msgspec.field(name="State", default="")
    labels: dict[str, str] | None = msgspec.field(name="Labels", default=None)
    network_settings: Networks | None = msgspec.field(name="NetworkSettings", default=None)

    @property
    def marked(self) -> bool:
        """Whether it is for us."""
        return any(key.startswith(PREFIX) for key in self.labels or ())


class Config(msgspec.Struct, frozen=True, rename="pascal"):
    labels: dict[str, str] | None = None


class Container(msgspec.Struct, frozen=True, rename="pascal"):
    """What we want to know of a container."""

    id: str
    name: str
    state: State
    created: str = ""
    config: Config = Config()
    network_settings: Networks = Networks()
    heard: float = math.inf
    """When the engine had said so, in seconds since boot: not one of its words."""


@dataclass(frozen=True, slots=True)
class Containers:
    """Those for us: the running ones, the oldest first, and the ids of those that are there and do not run. Of the
    others, the stations."""

    running: list[Container]
    resting: frozenset[str] = frozenset()
    others: frozenset[Station] = frozenset()


@dataclass(frozen=True, slots=True)
class Engine:
    """The one at `socket`."""

    socket: Path

    async def containers(self) -> Containers:
        """What there is. EngineError."""
        found, resting = [], set[str]()
        others = set[Station]()
        for listed in await self._get("/containers/json?all=true", list[Listed]):
            if not listed.marked:
                others |= listed.network_settings.stations if listed.network_settings else frozenset()
                continue
            resting.add(listed.id)
            if listed.state not in _RESTING:
                try:
                    container = await self._get(f"/containers/{quote(listed.id)}/json", Container)
                    heard = time.clock_gettime(time.CLOCK_BOOTTIME)
                    found.append(msgspec.structs.replace(container, heard=heard))
                except _NotFoundError:
                    resting.remove(listed.id)  # it was removed meanwhile, and an event will say so
        running = sorted((c for c in found if c.state.pid > 0), key=lambda c: c.created)
        return Containers(running, frozenset(resting - {c.id for c in running}), frozenset(others))

    @asynccontextmanager
    async def events(self) -> AsyncIterator["Events"]:
        """What happens to containers, from a moment ago until the end of the block. EngineError."""
        async with self._dialled() as stream:
            events = Events(stream)
            # From a moment ago: what happens before the engine has read this is told all the same.
            with _translated(self.socket):
                await events.begin(f"/events?since={time.time() - BEFORE:.0f}&filters={quote(_EVENTS)}")
            yield events

    async def _get(self, target: str, kind: type[_T]) -> _T:
        async with self._dialled() as stream:
            with _translated(self.socket), trio.fail_after(WITHIN):
                response = await http.request(stream, "GET", target, host="engine", max_body=MOST_BYTES)
        if response.status == 404:
            raise _NotFoundError(f"{self.socket}: there is no {target}")
        if response.status != 200:
            raise EngineError(f"{self.socket}: {target} is answered with {response.status}")
        try:
            return msgspec.json.decode(response.body, type=kind)
        except msgspec.MsgspecError as error:
            raise EngineError(f"{self.socket}: {target} is answered with what we do not understand: {error}") from error

    @asynccontextmanager
    async def _dialled(self) -> AsyncIterator[trio.SocketStream]:
        try:
            stream = await trio.open_unix_socket(self.socket)
        except OSError as error:
            absent = isinstance(error, FileNotFoundError)
            raise EngineError(f"{self.socket}: {error.strerror or error}", absent) from error
        async with stream:
            yield stream


class Events:
    """The engine's stream of events: lines of JSON in a response that does not end."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self._rest = b""

    async def begin(self, target: str) -> None:
        """Ask for it."""
        request = h11.Request(method="GET", target=target, headers=[("Host", "engine")])
        await self._stream.send_all(self._http.send(request) + self._http.send(h11.EndOfMessage()))

    async def happened(self) -> str:
        """The next event's action, as in `start`. EngineError at the end."""
        while b"\n" not in self._rest:
            try:
                event = self._http.next_event()
            except h11.ProtocolError as error:
                raise EngineError(f"the stream of events is no HTTP: {error}") from error
            match event:
                case h11.NEED_DATA:
                    try:
                        self._http.receive_data(bytes(await self._stream.receive_some()))
                    except trio.BrokenResourceError as error:
                        raise EngineError("the stream of events broke off") from error
                case h11.Response(status_code=status) if status != 200:
                    raise EngineError(f"events are answered with {status}")
                case h11.Data(data=data):
                    self._rest += data
                    if len(self._rest) > MOST_LINE:
                        raise EngineError(f"an event has more than {MOST_LINE} bytes")
                case h11.EndOfMessage() | h11.ConnectionClosed():
                    raise EngineError("the stream of events has ended")
        line, _, self._rest = self._rest.partition(b"\n")
        try:
            return msgspec.json.decode(line, type=_Event).action if line.strip() else ""
        except msgspec.MsgspecError:
            return "unknown"


class _Event(msgspec.Struct, frozen=True):
    action: str = msgspec.field(name="Action", default="")


class _NotFoundError(EngineError):
    """What was asked for is gone."""


@contextmanager
def _translated(socket: Path) -> Iterator[None]:
    """Foreign exceptions stop here."""
    try:
        yield
    except trio.TooSlowError as error:
        raise EngineError(f"{socket}: no answer within {WITHIN:g} s") from error
    except (http.HttpError, h11.ProtocolError, OSError, trio.BrokenResourceError) as error:
        raise EngineError(f"{socket}: {error}") from error
