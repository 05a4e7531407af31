"""Where a cgroup v2 path is, as the kernel's rules want it: (level, id).

A rule pins the id, and a unit that restarts gets a new one: callers look again and rewrite the table. Mixed layouts
mount version 2 in a folder beside the controllers of version 1, so the mount is looked up, not assumed.
"""

import os
import re
from pathlib import PurePosixPath

MOUNTS = "/proc/self/mountinfo"


def mount_point(mounts: str = MOUNTS) -> str | None:
    """Where cgroup v2 is mounted; None when it is not. `mounts` is in the form of /proc/self/mountinfo."""
    with open(mounts, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.partition(" - ")
            if after.startswith("cgroup2 "):
                return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), before.split()[4])
    return None


def relative(path: str, root: str) -> str:
    """The path as counted from the mount at `root`, without a slash before it: the same for all spellings of one."""
    return "/".join(part for part in path.removeprefix(root + "/").split("/") if part not in ("", "."))


def locate(path: str, root: str) -> tuple[int, int] | None:
    """(level, id) of the cgroup at `path`; None when there is no such cgroup now.

    `path` counts from `root`, the mount, as in /proc/PID/cgroup ("/system.slice/web.service"); one that starts with the
    mount point itself is understood too. The level is 1 for a child of the root; the root holds everybody and is
    refused with a ValueError, and so is a path with "..".
    """
    inside = PurePosixPath(relative(path, root))
    if not inside.parts or ".." in inside.parts:
        raise ValueError(f"{path!r} does not name a cgroup below the root, such as /system.slice/web.service")
    try:
        return len(inside.parts), os.stat(os.path.join(root, *inside.parts)).st_ino
    except (FileNotFoundError, NotADirectoryError):
        return None


def children(path: str, root: str) -> tuple[int, dict[str, int]] | None:
    """The id of the cgroup at `path` (empty for `root`, the mount) and those of the cgroups directly below it, by name;
    None when there is no such cgroup now."""
    folder = os.path.join(root, path)
    try:
        number = os.stat(folder).st_ino
        with os.scandir(folder) as entries:
            return number, {e.name: e.inode() for e in entries if e.is_dir(follow_symlinks=False)}
    except (FileNotFoundError, NotADirectoryError):
        return None


def find(number: int, below: str, root: str) -> str | None:
    """The path of the cgroup with this id at or below `below`, both as seen from `root`, the mount; None when there is
    none any more. Nearer ones are looked at first."""
    folders = [below]
    try:
        if os.stat(os.path.join(root, below)).st_ino == number:
            return below
    except (FileNotFoundError, NotADirectoryError):
        return None
    while folders:
        deeper = []
        for folder in folders:
            try:
                with os.scandir(os.path.join(root, folder)) as entries:
                    inside = [(os.path.join(folder, e.name), e.inode()) for e in entries if e.is_dir()]
            except (FileNotFoundError, NotADirectoryError):
                continue
            for path, inode in inside:
                if inode == number:
                    return path
                deeper.append(path)
        folders = deeper
    return None
