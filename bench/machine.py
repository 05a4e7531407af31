"""What a reader must know of the machine, and the lock that keeps a second run off it."""

import contextlib
import fcntl
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.backends.openssl.backend import backend

LOCK = Path(tempfile.gettempdir(), "culvert-make-bench.lock")


class BusyError(Exception):
    """Another benchmark runs here; the message says which."""


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Hold the machine-wide lock for the time of the block; BusyError when somebody has it."""
    with LOCK.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise BusyError(
                f"another benchmark is at work on this machine ({file.read().strip()}): its figures and yours would be "
                "worth nothing; wait for its end"
            ) from None
        file.truncate(0)
        file.write(f"process {os.getpid()}, since {datetime.now():%F %T}")
        file.flush()
        yield


def facts() -> dict[str, str]:
    """The machine, in words for a table."""
    cpu = re.search(r"^model name\s*: (.*)", Path("/proc/cpuinfo").read_text(), re.M)
    memory = re.search(r"^MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text(), re.M)
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "processor": cpu[1] if cpu else platform.machine(),
        "memory": f"{int(memory[1]) / 2**20:.0f} GiB" if memory else "?",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "OpenSSL": backend.openssl_version_text().removeprefix("OpenSSL "),
        "culvert": _commit(),
    }


def _commit() -> str:
    line = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(line, capture_output=True, text=True)
    except FileNotFoundError:
        return "?"
    return done.stdout.strip() or "?"
