"""Who is told what happens on a tunnel: the owner of each stream, and who watches over the tunnel as a whole."""

from typing import TYPE_CHECKING, Protocol

from agent.tunnel.stream import Asked

if TYPE_CHECKING:
    from agent.tunnel.link import Link


class Owner(Protocol):
    """What a stream's `owner` does about its events; see relay.leg.Leg."""

    def receive(self, payload: memoryview | bytes) -> None:
        """Take a piece of DATA; it is valid until `deliver`."""

    def deliver(self) -> None:
        """The pieces of this read are complete."""

    def ended(self) -> None:
        """The peer sends no more."""

    def reset(self, code: int) -> None:
        """The peer reset the stream."""

    def answered(self, status: int) -> None:
        """The peer answered the CONNECT."""

    def pump(self) -> None:
        """There is room to send again."""

    def broken(self, reason: str, *, unseen: bool = False) -> None:
        """The tunnel is gone; with `unseen` the peer is known not to have looked at the stream."""


class Watcher(Protocol):
    """Who is told about a link as a whole."""

    def asked(self, link: "Link", asked: Asked) -> None:
        """The peer opened a stream; the watcher sets its owner or answers it."""

    def roomier(self, link: "Link") -> None:
        """Streams ended, or the peer's settings came: it may carry more."""

    def leaving(self, link: "Link") -> None:
        """It takes no new streams (GOAWAY), or is closed."""


class _Nobody:
    """Owns the streams that were refused, and those whose owner has left."""

    def receive(self, payload: memoryview | bytes) -> None: ...

    def deliver(self) -> None: ...

    def ended(self) -> None: ...

    def reset(self, code: int) -> None: ...

    def answered(self, status: int) -> None: ...

    def pump(self) -> None: ...

    def broken(self, reason: str, *, unseen: bool = False) -> None: ...


NOBODY = _Nobody()
