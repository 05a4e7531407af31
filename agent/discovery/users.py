"""Workloads that are users of the machine: one file says which, by name or number.

    [postgres]                       # or ["110"]
    namespace = "shop"               # default
    service_account = "db"           # the user's name
    labels = "app=db mesh=on"        # none
    ports = [5432]                   # those at which its processes listen
    name = "db-1"                    # the user's name and the node's
    fail_mode = "open"               # closed

All processes of the user are the workload. A user that does not exist yet is looked for until it does, so that the file
can be there before the package that makes the user.
"""

import pwd
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from agent.discovery.folders import Folders, TooMuch, read_small
from agent.discovery.found import Found, Publish, Seen, failing
from agent.discovery.sections import NAMESPACE, named, pairs, spelled
from ca.resources.workload import Match

MOST_BYTES = 2**20
AGAIN = 1.0
"""Seconds between looks for users that do not exist: those of a directory service come without a change in /etc."""

_PASSWD = Path("/etc")


class _User(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    namespace: str = NAMESPACE
    service_account: str = ""
    labels: str = ""
    ports: tuple[int, ...] | None = None
    name: str = ""
    fail_mode: str = ""


@dataclass
class Users:
    """The source; `node` is the name of this node."""

    file: Path
    node: str
    name: str = "users"

    async def run(self, publish: Publish) -> None:
        """Until cancelled."""
        good: dict[str, _User] | None = None
        with Folders() as folders:
            while True:
                folders.watch([self.file.parent, _PASSWD])
                good, seen, lacking = await trio.to_thread.run_sync(look, self.file, self.node, good)
                publish(seen)
                with trio.move_on_after(AGAIN if lacking else float("inf")):
                    await folders.news()


def look(file: Path, node: str, good: dict[str, _User] | None) -> tuple[dict[str, _User] | None, Seen, bool]:
    """What the file says now, as workloads, and whether a user is lacking. `good` is what it said when it was last
    whole: that stands while it is broken. Blocking."""
    problems: list[str] = []
    try:
        good = dict(_read(read_small(file, MOST_BYTES)))
    except FileNotFoundError:
        good = {}
    except (OSError, TooMuch, ValueError) as error:
        problems.append(f"{file}: {(error.strerror if isinstance(error, OSError) else '') or error}")
    found = []
    lacking = False
    for user, says in (good or {}).items():
        try:
            found.append(_found(user, says, node))
        except KeyError:
            lacking = True
            problems.append(f"{file}: [{user}]: there is no such user yet")
        except ValueError as error:
            problems.append(f"{file}: [{user}]: {error}")
    return good, Seen(tuple(found), tuple(problems), good is not None and not lacking), lacking


def _read(text: str) -> Iterator[tuple[str, _User]]:
    """ValueError for what is no such file; UnicodeDecodeError and TOMLDecodeError are ones."""
    for user, table in tomllib.loads(text).items():
        try:
            yield user, msgspec.convert(table, _User)
        except msgspec.ValidationError as error:
            raise ValueError(f"[{user}]: {error}") from error


def _found(user: str, says: _User, node: str) -> Found:
    """KeyError when there is no such user."""
    uid = int(user) if user.isdecimal() else pwd.getpwnam(user).pw_uid
    account = says.service_account or spelled(user)
    return Found(
        "users",
        f"user {user}",
        says.namespace,
        says.name or named(user, node),
        account,
        Match(uid=uid),
        says.ports,
        pairs(says.labels) if says.labels else {},
        more=failing(says.fail_mode, node, account),
    )
