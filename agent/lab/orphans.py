"""What a lab left behind whose owner was killed: found by the owner's process id in every name, and removed."""

import re
import shutil
import tempfile
from pathlib import Path

from agent.lab.namespace import DIRECTORY, Namespace
from agent.lab.place import remove_cgroup
from redirect.cgroup import mount_point

STEM = "culvert-lab-"
"""Directories and cgroups are called STEM, then the owner's process id, then what makes them unique."""


def remove_orphans(of: int | None = None) -> None:
    """Remove what belongs to no living process; with `of`, what belonged to that one, whose labs are closed."""
    if DIRECTORY.is_dir():
        for path in DIRECTORY.iterdir():
            if _orphan(r"cv(\d+)x\d+-.*", path.name, of):
                Namespace(path.name).remove()
    for path in Path(tempfile.gettempdir()).glob(f"{STEM}*"):
        if _orphan(rf"{STEM}(\d+)-.*", path.name, of):
            shutil.rmtree(path, ignore_errors=True)
    mount = mount_point()
    if mount is None:
        return
    for path in Path(mount).glob(f"{STEM}*"):
        if _orphan(rf"{STEM}(\d+)-.*", path.name, of):
            for directory in sorted(path.glob("**"), reverse=True):
                remove_cgroup(str(directory.relative_to(mount)))


def _orphan(pattern: str, name: str, of: int | None) -> bool:
    owner = re.fullmatch(pattern, name)
    if owner is None:
        return False
    return int(owner[1]) == of if of is not None else not Path("/proc", owner[1]).exists()
