"""A node's side of a session, as plain as can be: what a watcher ends up with."""

import trio

from ca.contract import VERSION, Ask, Delta, Hello, LocalMatch, Private, Roots
from ca.frames import FrameStream
from ca.resources.kinds import Resource, decode
from ca.resources.metadata import Key


class Replica:
    """Follows a session. `said` lists what arrived, in order, as (frame, revision)."""

    def __init__(self) -> None:
        self.revision = 0
        self.incarnation = ""
        self.objects: dict[Key, Resource] = {}
        self.matches: list[LocalMatch] = []
        self.roots = ""
        self.said: list[tuple[str, int]] = []
        self.asks: list[Ask] = []
        self.ended = trio.Event()
        self._moved = trio.Event()

    def hello(self, version: str = VERSION) -> Hello:
        return Hello(version=version, agent_version="test", revision=self.revision, incarnation=self.incarnation)

    async def follow(self, frames: FrameStream) -> None:
        """Until the session ends."""
        fresh: dict[Key, Resource] | None = None
        while True:
            frame = await frames.receive()
            match frame:
                case Delta():
                    self.said.append(("reset" if frame.reset else "delta", frame.revision))
                    target = fresh if fresh is not None else dict(self.objects)
                    if frame.reset:
                        target = {}
                    for raw in frame.put:
                        resource = decode(raw)
                        target[resource.key] = resource
                    for name in frame.delete:
                        target.pop(Key(name.kind, name.namespace, name.name), None)
                    fresh = target if frame.more else None
                    if not frame.more:
                        self.objects, self.revision, self.incarnation = target, frame.revision, frame.incarnation
                case Private():
                    self.said.append(("private", frame.revision))
                    self.matches = frame.matches
                case Roots():
                    self.said.append(("roots", 0))
                    self.roots = frame.pem
                case Ask():
                    self.asks.append(frame)
            self._moved.set()
            self._moved = trio.Event()

    async def at(self, revision: int, seconds: float = 10) -> None:
        """Wait until the view is of that revision."""
        with trio.fail_after(seconds):
            while self.revision < revision:
                await self._moved.wait()

    async def asked(self, seconds: float = 10) -> Ask:
        """Wait for a question."""
        with trio.fail_after(seconds):
            while not self.asks:
                await self._moved.wait()
        return self.asks.pop(0)
