"""What is measured: each peer is one class with the same four verbs.

missing   what is not installed here, by the name to install; a peer with something missing is skipped, visibly
start     bring it up on a rig
aim       let its client side lead to one port of the servers; where and how load generators dial it then
stop      end it
"""

from dataclasses import dataclass, field
from typing import Protocol

from bench.measures import Site
from bench.rig import Rig


class Peer(Protocol):
    """One way to carry bytes from node A to node B."""

    @property
    def name(self) -> str: ...

    @property
    def notes(self) -> list[str]:
        """What a reader of its figures must know, once it has started."""

    def missing(self) -> str: ...

    def version(self) -> str: ...

    async def start(self, rig: Rig, workers: int) -> None: ...

    async def aim(self, port: int) -> Site: ...

    async def stop(self) -> None: ...


@dataclass(slots=True)
class Direct:
    """No peer at all: the wire between client and server."""

    name: str = "direct"
    notes: list[str] = field(default_factory=list)
    _rig: Rig | None = None

    def missing(self) -> str:
        return ""

    def version(self) -> str:
        return "-"

    async def start(self, rig: Rig, workers: int) -> None:
        self._rig = rig

    async def aim(self, port: int) -> Site:
        assert self._rig
        rig = self._rig
        return Site(rig.b.address, port, rig.generator, (rig.a.account, rig.b.account), rig.everything)

    async def stop(self) -> None:
        self._rig = None
