"""A centre as a real process, and `culvert` as real processes against it."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Commands:
    """Runs `culvert` with the centre's directory in its environment."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.address = f"127.0.0.1:{free_port()}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("CULVERT_", "COLUMNS", "NOTIFY_"))}
        self.environ = {**inherited, "PYTHONPATH": str(ROOT), "CULVERT_CENTRAL_DIR": str(directory)}

    def __call__(self, *words: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
        """One command, run to its end."""
        return subprocess.run(
            [sys.executable, "-m", "agent.cli", *words],
            input=stdin, capture_output=True, text=True, timeout=60, env={**self.environ, **environ}, check=False,
        )  # fmt: skip

    def ok(self, *words: str, **more: str) -> str:
        """One command that must work: its stdout."""
        done = self(*words, **more)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def refused(self, *words: str, code: int = 1, **more: str) -> str:
        """One command that must not: its stderr."""
        done = self(*words, **more)
        assert done.returncode == code, (words, done.returncode, done.stdout, done.stderr)
        return done.stderr

    def start(self) -> subprocess.Popen[str]:
        """`culvert central run`, once it is ready; the caller ends it."""
        process = subprocess.Popen(
            [sys.executable, "-m", "agent.cli", "central", "run"], stderr=subprocess.PIPE, text=True, env=self.environ
        )
        assert process.stderr is not None
        for line in process.stderr:
            if json.loads(line)["event"] == "ready":
                return process
        raise AssertionError(f"the centre ended with {process.wait()}")


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> int:
    """End the process by a signal: its exit code."""
    process.send_signal(number)
    code = process.wait(timeout=30)
    if process.stderr:
        process.stderr.close()
    return code


@contextlib.contextmanager
def mesh(directory: Path) -> Iterator[Commands]:
    """A new mesh whose centre runs for the length of the block."""
    culvert = Commands(directory)
    culvert.ok("central", "init", "--trust-domain", "shop.example", "--listen", culvert.address)
    process = culvert.start()
    try:
        yield culvert
    finally:
        end(process)
