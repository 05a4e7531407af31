"""Network namespaces of the tests' own; no test touches the host's."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count

import pytest

from redirect.cgroup import mount_point
from redirect.kernel import Kernel
from tests.redirect.traffic import ip, unique

_numbers = count(1)


@contextmanager
def namespace() -> Iterator[str]:
    """A network namespace with loopback up, for the time of the block; its name."""
    name = f"{unique()}-{next(_numbers)}"
    added = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if added.returncode:
        pytest.skip(f"ip netns add {name}: {added.stderr.strip()}")
    try:
        ip(name, "link", "set", "lo", "up")
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@pytest.fixture
def netns() -> Iterator[str]:
    """The name of a fresh network namespace with loopback up; removed afterwards."""
    with namespace() as name:
        yield name


@pytest.fixture
def kernel(netns: str) -> Iterator[Kernel]:
    """The table of that namespace."""
    kernel = Kernel(netns)
    yield kernel
    kernel.close()


@dataclass(frozen=True)
class Wire:
    """Two machines on one link. The node has addresses .1 and .2 (::1, ::2), the far one .9 and .10."""

    node: str
    far: str


@pytest.fixture
def wire(netns: str) -> Iterator[Wire]:
    """The node is `netns`. Everybody is a neighbour of everybody, and a default route exists."""
    with namespace() as far:
        ip(netns, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", far)
        for name, hosts in ((netns, (1, 2)), (far, (9, 10))):
            for host in hosts:
                ip(name, "addr", "add", f"10.77.0.{host}/24", "dev", "eth0")
                ip(name, "addr", "add", f"fd77::{host}/64", "dev", "eth0", "nodad")
            ip(name, "link", "set", "eth0", "up")
        ip(netns, "route", "add", "default", "via", "10.77.0.9")
        ip(netns, "route", "add", "default", "via", "fd77::9")
        yield Wire(netns, far)


@pytest.fixture
def cgroup() -> Iterator[str]:
    """A cgroup v2 directory of its own, one below the root."""
    root = mount_point()
    path = f"{root}/{unique()}-{next(_numbers)}"
    try:
        os.mkdir(path)
    except OSError as error:
        pytest.skip(f"mkdir {path}: {error.strerror}")
    try:
        yield path
    finally:
        os.rmdir(path)
