"""Finds the connections that were there before enrolment, in every namespace of the node, and ends them. Blocking."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping

from agent.answers import EarlierAnswer, EarlierRow
from agent.node.earlier import Earlier, earlier
from agent.node.namespace import title
from agent.owners import owners
from ca.endpoint import join
from redirect.cgroup import mount_point
from redirect.desired import Desired
from redirect.diag import Sockets, Undestroyable
from redirect.namespace import NamespaceError


def listed(tables: Mapping[str, Desired], cgroups: Mapping[str, str], cut: bool = False) -> EarlierAnswer:
    """The connections in each place where a table holds; ended, with `cut`. `cgroups` has the paths of the workloads
    that are recognised by theirs."""
    below = {workload: _ids(path) for workload, path in cgroups.items()}
    rows: list[EarlierRow] = []
    problems: list[str] = []
    with contextlib.ExitStack() as stack:
        everywhere: list[tuple[str, Sockets, list[Earlier]]] = []
        for place, table in sorted(tables.items()):
            with _told(place, problems):
                sockets = stack.enter_context(Sockets(place or None))
                everywhere.append((place, sockets, _settled(sockets, table, below)))
        # All are found before any is cut: the end of one may be the end of another, elsewhere.
        for place, sockets, found in everywhere:
            names = {inode: str(owner) for inode, owner in owners([e.sock.inode for e in found]).items()}
            with _told(place, problems):
                for each in found if cut else ():
                    sockets.destroy(each.sock)
                rows += [_row(each, place, names) for each in found]
    return EarlierAnswer(rows, cut, problems)


@contextlib.contextmanager
def _told(place: str, problems: list[str]) -> Iterator[None]:
    """What fails in one place is a problem of that place."""
    try:
        yield
    except (OSError, NamespaceError, Undestroyable) as error:
        problems.append(f"{title(place)}: {error}")


def _settled(sockets: Sockets, table: Desired, below: Mapping[str, set[int]]) -> list[Earlier]:
    """A list of sockets is not of one moment: what a first look found and a second did not was on its way to us."""
    first = {e.sock.identity for e in earlier(sockets.listed(), table, below)}
    if not first:
        return []
    return [e for e in earlier(sockets.listed(), table, below) if e.sock.identity in first]


def _ids(path: str) -> set[int]:
    """Of a cgroup and of all below it."""
    root = mount_point()
    if root is None:
        return set()
    top = os.path.join(root, path.removeprefix(f"{root}/").lstrip("/"))
    return {number for number in map(_inode, _folders(top)) if number}


def _folders(top: str) -> Iterable[str]:
    return (folder for folder, _, _ in os.walk(top))


def _inode(folder: str) -> int:
    try:
        return os.stat(folder).st_ino
    except OSError:
        return 0


def _row(found: Earlier, place: str, names: Mapping[int, str]) -> EarlierRow:
    sock = found.sock
    return EarlierRow(
        found.workload, found.way, join(*sock.local), join(*sock.remote), names.get(sock.inode, ""), place
    )
