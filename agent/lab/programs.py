"""Real programs that know nothing of a mesh: a web server, a client for it, and a server that speaks first.

They are started with the system's own Python where there is one, because they run as users that may not be able to
read the environment that Culvert is installed in.
"""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from agent.lab.place import Place

SYSTEM_PYTHON = next(
    p for p in ("/usr/bin/python3", getattr(sys, "_base_executable", ""), sys.executable) if p and Path(p).exists()
)


def web_server(address: str, port: int, directory: Path) -> list[str]:
    """Python's own HTTP server for the files of `directory`."""
    return [SYSTEM_PYTHON, "-m", "http.server", str(port), "--bind", address, "--directory", str(directory)]


_GREETER = """
import socketserver, sys
class Greeter(socketserver.BaseRequestHandler):
    def handle(self):
        peer = self.client_address[0]
        self.request.sendall(f"220 {sys.argv[3]} greets {peer}\\r\\n".encode())
        while data := self.request.recv(65536):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
    address_family = 10 if ":" in sys.argv[1] else 2
Server((sys.argv[1], int(sys.argv[2])), Greeter).serve_forever()
"""


def greeter(address: str, port: int, word: str) -> list[str]:
    """A raw TCP server that speaks first, as mail and database servers do, then echoes until the client ends."""
    return [SYSTEM_PYTHON, "-c", _GREETER, address, str(port), word]


_HEAR = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s, s.makefile("rb") as f:
    sys.stdout.write(f.readline().decode())
    s.sendall(sys.argv[3].encode()); s.shutdown(socket.SHUT_WR)
    sys.stdout.write(f.read().decode())
"""


def hear(address: str, port: int, word: str) -> list[str]:
    """A client of `greeter`: prints the greeting, says `word` and prints what comes back."""
    return [SYSTEM_PYTHON, "-c", _HEAR, address, str(port), word]


_GET = """
import sys, urllib.request
with urllib.request.urlopen(sys.argv[1], timeout=5) as r:
    sys.stdout.buffer.write(r.read())
"""


def get(url: str) -> list[str]:
    """An HTTP client: curl where it is installed, else Python's own; prints the body, fails on anything but success."""
    if curl := shutil.which("curl"):
        return [curl, "--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time", "5", url]
    return [SYSTEM_PYTHON, "-c", _GET, url]


@dataclass(frozen=True, slots=True)
class Ran:
    """How a program ended, and what it printed."""

    status: int
    output: bytes
    errors: str

    @property
    def ok(self) -> bool:
        return self.status == 0


async def run(
    place: Place,
    argv: Sequence[str],
    seconds: float = 10.0,
    *,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
) -> Ran:
    """Run a program to its end; killed after `seconds`, which is reported as status 124."""
    with trio.move_on_after(seconds):
        done = await trio.run_process(
            place.command(argv),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            stdin=stdin,
            env={**os.environ, **(env or {})},
        )
        return Ran(done.returncode, done.stdout, done.stderr.decode(errors="replace").strip())
    return Ran(124, b"", f"still running after {seconds:g} s")
