"""One network namespace by name, and running code or opening sockets inside it.

The namespace is kept alive by a bind mount under /run/netns, where an agent looks too.
"""

import contextlib
import ctypes
import fcntl
import os
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from redirect.namespace import NAMED, in_namespace

_T = TypeVar("_T")

DIRECTORY = Path(NAMED)

_libc = ctypes.CDLL(None, use_errno=True)
_MS_BIND, _MS_REC, _MS_SHARED = 1 << 12, 1 << 14, 1 << 20  # linux/mount.h
_MNT_DETACH = 2


@dataclass(frozen=True, slots=True)
class Namespace:
    """A named network namespace; `create` makes it and `remove` ends it, both by whoever owns the lab."""

    name: str

    @property
    def path(self) -> Path:
        return DIRECTORY / self.name

    def create(self) -> None:
        """Make it, with loopback still down. FileExistsError when the name is taken."""
        DIRECTORY.mkdir(mode=0o755, parents=True, exist_ok=True)
        _share(DIRECTORY)
        self.path.touch(exist_ok=False)
        try:
            subprocess.run(["unshare", f"--net={self.path}", "true"], check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            self.path.unlink()
            raise OSError(f"cannot make network namespace {self.name}: {error.stderr.strip()}") from error

    def remove(self) -> None:
        """Take the name away; the namespace ends with the last process in it. Nothing happens when it is gone."""
        _libc.umount2(os.fsencode(self.path), _MNT_DETACH)  # unlink reports what is still wrong
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()

    def run(self, work: Callable[[], _T]) -> _T:
        """Call `work` in a thread inside the namespace; blocks, so keep it short. Its exception is raised here."""
        return in_namespace(str(self.path), work)

    def socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0, *, uid: int | None = None
    ) -> socket.socket:
        """A socket that belongs to the namespace and, for the kernel's rules, to `uid`. The caller closes it."""

        def make() -> socket.socket:
            if uid is not None:
                _libc.setfsuid(uid)  # this thread's alone; the kernel stamps it on the sockets the thread makes
            return socket.socket(family, kind, proto)

        return self.run(make)


def _share(directory: Path) -> None:
    """Make it a mount of its own, which others see change, as the first `ip netns add` of a machine does (container
    engines too). If that came after us, it would mount all that is in there once more, beyond everybody's reach."""
    path = os.fsencode(directory)
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)  # of several labs that start one does it
        if _libc.mount(b"", path, b"none", _MS_SHARED | _MS_REC, None):
            for flags in (_MS_BIND | _MS_REC, _MS_SHARED | _MS_REC):
                if _libc.mount(path, path, b"none", flags, None):
                    code = ctypes.get_errno()
                    raise OSError(code, f"cannot make {directory} a shared mount: {os.strerror(code)}")
    finally:
        os.close(held)
