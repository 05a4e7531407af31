"""What the proxies have in common: a program on each node, and a configuration for each side and target.

TLS 1.3 with AES-128-GCM, X25519 and P-256 leaves, mutual, each side checking who the other is. Everything else stands
at its program's default. The target is part of the configuration, so aiming elsewhere starts the pair anew.
"""

import shutil
import subprocess
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from agent.lab.process import Process
from bench.certificates import make_certificates
from bench.measures import Site
from bench.rig import Node, Rig

LISTEN, TUNNEL = 18080, 15008
NAME_A, NAME_B = "nodea", "nodeb"
CIPHER = "TLS_AES_128_GCM_SHA256"


@dataclass(frozen=True, slots=True)
class Side:
    """What the configuration of one side is made of. `target` is what side B dials."""

    rig: Rig
    node: Node
    workers: int
    target: str
    certificates: Path

    @property
    def tunnel(self) -> str:
        return f"{self.rig.b.address}:{TUNNEL}"

    def file(self, name: str, text: str) -> Path:
        """Write a file of this side."""
        path = self.node.directory / name
        path.write_text(text)
        return path


class ProxyPair(ABC):
    """A proxy on each node; subclasses write the configurations."""

    name: str
    package: str
    """What to install to have it."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._rig: Rig | None = None
        self._workers = 1
        self._running: list[Process] = []

    @abstractmethod
    def near(self, side: Side) -> list[str]:
        """Configure node A's side: listens on loopback, dials the tunnel. The command line that runs it."""

    @abstractmethod
    def far(self, side: Side) -> list[str]:
        """Configure node B's side: listens for the tunnel, dials the target. The command line that runs it."""

    @abstractmethod
    def program(self) -> str | None:
        """Its path, None when it is not installed."""

    @abstractmethod
    def version(self) -> str: ...

    def missing(self) -> str:
        return "" if self.program() else self.package

    async def start(self, rig: Rig, workers: int) -> None:
        """Take the rig; processes start when there is a target."""
        self._rig, self._workers = rig, workers
        make_certificates(self._certificates(rig), {NAME_A: rig.a.address, NAME_B: rig.b.address})

    async def aim(self, port: int) -> Site:
        """Start both sides towards that port."""
        await self._end()
        rig = self._rig
        assert rig
        for node, configure, listens in ((rig.b, self.far, TUNNEL), (rig.a, self.near, LISTEN)):
            side = Side(rig, node, self._workers, f"127.0.0.1:{port}", self._certificates(rig))
            process = rig.start(node.name, rig.place(node), configure(side))
            self._running.append(process)
            await process.listening(listens)
        return Site("127.0.0.1", LISTEN, rig.generator, (rig.a.account, rig.b.account), rig.everything)

    async def stop(self) -> None:
        await self._end()
        self._rig = None

    async def _end(self) -> None:
        while self._running:
            assert self._rig
            await self._rig.end(self._running.pop())

    @staticmethod
    def _certificates(rig: Rig) -> Path:
        return rig.lab.directory / f"{rig.name}-certificates"


def first_line(argv: list[str]) -> str:
    """The first line that a program prints about itself."""
    done = subprocess.run(argv, capture_output=True, text=True)
    return next((line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()), "?")


def which(name: str) -> str | None:
    """Where a program is; the sbin folders count although an ordinary PATH may lack them."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
