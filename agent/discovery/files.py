"""Workloads written in files on the node: documents as `culvert apply` takes them, in one directory.

    kind: Workload
    metadata: {namespace: shop, name: web-1, labels: {app: web, mesh: on}}
    spec: {serviceAccount: web, match: {uid: 33}}       # node: this one; without ports: those the kernel knows of

A file that is broken is named, and the others count. What it said while it was whole stands until it is mended or
taken away: a slip of the pen must not send anybody's connections out in clear.
"""

from dataclasses import dataclass
from pathlib import Path

import trio

from agent.discovery.folders import Folders, TooMuch, entries, read_small
from agent.discovery.found import Found, Publish, Seen
from ca.resources import documents
from ca.resources.documents import DocumentError, Placed
from ca.resources.workload import Workload

MOST_FILES, MOST_BYTES = 2000, 2**20
SHOWN = 5
"""Faults told of one file."""


@dataclass
class Files:
    """The source; `node` is the name of this node."""

    folder: Path
    node: str
    name: str = "files"

    async def run(self, publish: Publish) -> None:
        """Until cancelled."""
        good: dict[Path, tuple[Found, ...]] = {}
        with Folders() as folders:
            while True:
                folders.watch([self.folder])
                publish(await trio.to_thread.run_sync(look, self.folder, self.node, good))
                await folders.news()


def look(folder: Path, node: str, good: dict[Path, tuple[Found, ...]]) -> Seen:
    """What the directory says now. `good` has what each file said when it was last whole, and is kept up to date."""
    problems: list[str] = []
    whole = True
    try:
        paths = [p for p in entries(folder, MOST_FILES) if p.suffix in (".yaml", ".yml")]
    except (OSError, TooMuch) as error:
        why = (error.strerror if isinstance(error, OSError) else "") or error
        return Seen(tuple(f for found in good.values() for f in found), (f"{folder}: {why}",), whole=False)
    for gone in good.keys() - set(paths):
        del good[gone]
    for path in paths:
        try:
            good[path] = _read(path, node)
        except FileNotFoundError:
            good.pop(path, None)
        except (OSError, TooMuch, UnicodeDecodeError, DocumentError, ValueError) as error:
            problems += _told(path, error)
            whole = whole and path in good
    return Seen(tuple(f for path in paths for f in good.get(path, ())), tuple(problems), whole)


def _read(path: Path, node: str) -> tuple[Found, ...]:
    text = read_small(path, MOST_BYTES)
    return tuple(_found(placed, node) for placed in documents.read([(str(path), text)], {"spec.node": node}))


def _found(placed: Placed, node: str) -> Found:
    workload = placed.resource
    if not isinstance(workload, Workload):
        raise ValueError(f"{placed.file}:{placed.line}: {workload.key}: only workloads are found in files; apply it")
    spec = workload.spec
    try:
        if spec.node != node:
            raise ValueError(f"spec.node: this is node {node}, not {spec.node}")
        if spec.match is None:
            raise ValueError("spec.match is missing")
        if spec.found is not None:
            raise ValueError("spec.found is not for people to write; leave it out")
        metadata = workload.metadata
        return Found(
            "files",
            placed.file,
            metadata.namespace,
            metadata.name,
            spec.service_account,
            spec.match,
            spec.ports if "spec.ports" in placed.lines else None,
            metadata.labels,
            spec.address,
            spec,
        )
    except ValueError as error:
        raise ValueError(placed.place(f"{workload.key}: {error}")) from error


def _told(path: Path, error: Exception) -> list[str]:
    if isinstance(error, DocumentError):
        faults = [str(f) for f in error.faults]
        more = [f"{path}: and {len(faults) - SHOWN} more faults"] if len(faults) > SHOWN else []
        return faults[:SHOWN] + more
    if isinstance(error, OSError):
        return [f"{path}: cannot be read: {error.strerror}"]
    if isinstance(error, UnicodeDecodeError):
        return [f"{path}: is no text in UTF-8: {error.reason} at byte {error.start}"]
    return [str(error) if str(error).startswith(str(path)) else f"{path}: {error}"]
