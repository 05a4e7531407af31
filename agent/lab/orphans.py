"""What a lab left behind whose owner was killed: found by the owner's process id in every name, and removed."""

import contextlib
import re
import shutil
import tempfile
from pathlib import Path

from agent.lab.namespace import DIRECTORY, Namespace
from agent.lab.place import remove_cgroup
from redirect.cgroup import mount_point

_NAMED = re.compile(r"cv(\d+)x\d+(-.*)?")


def name(owner: int, count: int) -> str:
    """What everything of a lab is called, or begins with."""
    return f"cv{owner}x{count}"


def remove_orphans(of: int | None = None) -> None:
    """Remove what belongs to no living process; with `of`, what belonged to that one, whose labs are closed. What
    cannot be removed stays, and keeps nobody from a lab of his own."""
    for path in _orphans(DIRECTORY, of):
        with contextlib.suppress(OSError):
            Namespace(path.name).remove()
    for path in _orphans(Path(tempfile.gettempdir()), of):
        shutil.rmtree(path, ignore_errors=True)
    if mount := mount_point():
        for path in _orphans(Path(mount), of):
            for directory in sorted(path.glob("**"), reverse=True):
                with contextlib.suppress(OSError):
                    remove_cgroup(str(directory.relative_to(mount)))


def _orphans(directory: Path, of: int | None) -> list[Path]:
    if not directory.is_dir():
        return []
    named = [(path, found) for path in directory.iterdir() if (found := _NAMED.fullmatch(path.name))]
    if of is not None:
        return [path for path, found in named if int(found[1]) == of]
    return [path for path, found in named if not Path("/proc", found[1]).exists()]
