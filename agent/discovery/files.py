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

from agent.discovery.folders import Folders, TooMuch, entries
from agent.discovery.found import Found, Publish, Seen

MOST_FILES = 2000


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
        from agent.discovery import written  # a megabyte, with YAML: not for nodes without such files

        try:
            good[path] = written.read(path, node)
        except FileNotFoundError:
            good.pop(path, None)
        except written.ERRORS as error:
            problems += written.told(path, error)
            whole = whole and path in good
    return Seen(tuple(f for path in paths for f in good.get(path, ())), tuple(problems), whole)
