"""Runs this project as an ordinary user, wherever it and its Python are installed.

They may lie where only root can look (a clone below /root), so a mount namespace shows them in places for all.
"""

import os
import site
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
UID = 65534

_START = """
set -e
box=$1 source=$2 site=$3 python=$4; shift 4
mount --bind "$source" "$box/source"
mount --bind "$site" "$box/site"
mount --bind "$python" "$box/python"
cd "$box"
exec setpriv --reuid={uid} --regid={uid} --clear-groups --bounding-set=-all \
    env HOME="$box" LD_LIBRARY_PATH="$box/python/lib" PYTHONPATH="$box/source:$box/site" PYTHONDONTWRITEBYTECODE=1 \
    "$box/python/bin/{python}" "$@"
"""


@contextmanager
def ordinary_python() -> Iterator[list[str]]:
    """The start of a command line that runs Python as an ordinary user, with this project on its path."""
    with tempfile.TemporaryDirectory(prefix="culvert-ordinary-", ignore_cleanup_errors=True) as name:
        box = Path(name)
        box.chmod(0o755)
        for directory in ("source", "site", "python"):
            (box / directory).mkdir(mode=0o755)
        (packages,) = [p for p in site.getsitepackages() if Path(p).is_dir()][:1]
        python = f"python{sys.version_info[0]}.{sys.version_info[1]}"
        yield [
            *("unshare", "--mount", "--propagation=slave", "sh", "-c", _START.format(uid=UID, python=python), "sh"),
            *(str(box), str(ROOT), packages, sys.base_prefix),
        ]


def environment() -> dict[str, str]:
    """For Python as we are ourselves."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
