from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cgroups import own_slice


@pytest.fixture
def slice_() -> Iterator[Path]:
    """A cgroup for units to come and go in."""
    with own_slice() as path:
        yield path
