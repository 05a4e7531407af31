"""Network namespaces of the tests' own; no test touches the host's."""

import os
import subprocess
from collections.abc import Iterator
from itertools import count

import pytest

_numbers = count(1)


@pytest.fixture
def netns() -> Iterator[str]:
    """The name of a fresh network namespace with loopback up; removed afterwards."""
    name = f"cv-redir-{os.getpid()}-{next(_numbers)}"
    added = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if added.returncode:
        pytest.skip(f"ip netns add {name}: {added.stderr.strip()}")
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)
