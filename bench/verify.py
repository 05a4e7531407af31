"""Whether a peer carries bytes unharmed, in both directions; asked before anything is measured."""

import hashlib
import json
from pathlib import Path

import trio

from agent.lab.programs import run
from bench.measures import Site
from bench.programs import command, transfer

UPLOAD = 4 * 2**20


class WrongBytes(Exception):
    """The peer lost, changed or refused what it should carry: none of its figures would mean anything."""


async def verify(site: Site, blob: Path, patience: float = 15.0) -> None:
    """Move files both ways and compare their SHA-256. A peer that has just started may take `patience` seconds."""
    deadline = trio.current_time() + patience
    line = command(transfer, site.host, site.port, UPLOAD)
    done = await run(site.place, line, 60)
    while not done.ok and trio.current_time() < deadline:
        await trio.sleep(0.2)
        done = await run(site.place, line, 60)
    if not done.ok:
        raise WrongBytes(f"no transfer through {site.host}:{site.port}: {done.errors[-300:]}")
    sums = json.loads(done.output)
    if sums["put"] != sums["back"]:
        raise WrongBytes("an upload arrived changed")
    if sums["got"] != digest(blob):
        raise WrongBytes("a download arrived changed")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
