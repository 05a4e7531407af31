"""Cgroups of the tests' own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from redirect.cgroup import mount_point


@contextmanager
def own_slice() -> Iterator[Path]:
    """The directory of a cgroup for others to come and go in; it goes with all that is left in it."""
    path = Path(mount_point() or "/nonexistent", f"culvert-test-{os.getpid()}.slice")
    try:
        path.mkdir()
    except OSError as error:
        pytest.skip(f"mkdir {path}: {error.strerror}")
    try:
        yield path
    finally:
        for directory in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
            directory.rmdir()
        path.rmdir()
