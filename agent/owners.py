"""Which process has a socket. Blocking: looks through /proc."""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Owner:
    """A process, by its name as `ps -o comm` has it."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name}, pid {self.pid}"


def owners(inodes: Collection[int]) -> dict[int, Owner]:
    """The first process found with each of the sockets; those of processes that may not be looked into are left out."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, Owner] = {}
    for pid in processes():
        for link in sockets_of(pid):
            if link in wanted:
                found.setdefault(wanted[link], Owner(pid, process_name(pid)))
        if len(found) == len(wanted):
            break
    return found


def processes() -> Iterator[int]:
    """Pids, in no order."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def sockets_of(pid: int) -> Iterator[str]:
    """The sockets that a process has, as `socket:[INODE]`; none for one that is gone or not ours to see."""
    try:
        fds = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for fd in fds:
        try:
            link = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError:
            continue
        if link.startswith("socket:"):
            yield link


def process_name(pid: int) -> str:
    """As `ps -o comm` has it; empty for one that is gone."""
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""
