"""Servers that say their name and clients that tell whom they reached, inside namespaces."""

import ctypes
import os
import socket
import struct
import subprocess
import sys
import threading
from dataclasses import dataclass

from redirect.cgroup import locate, mount_point
from redirect.desired import Marks
from redirect.namespace import in_namespace
from redirect.origdst import SO_MARK, NotRedirected, listener, original_destination

MARKS = Marks()
REFUSED = "refused"


def tcp_pair(netns: str, listening: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A client connected to `listening` inside the namespace, and what was accepted."""
    address = listening.getsockname()
    client = in_namespace(netns, lambda: socket.create_connection(address[:2], timeout=5))
    listening.settimeout(5)
    return client, listening.accept()[0]


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@dataclass(frozen=True)
class Seen:
    """What a server saw of one connection; `destination` is empty when nothing redirected it."""

    peer: str
    destination: tuple[str, int] | None


class Server:
    """Says its name to whoever connects, then reads until the end. Listens until the with block is left."""

    def __init__(self, netns: str, name: str, address: str, port: int, mark: int = 0) -> None:
        self.name = name
        self.seen: list[Seen] = []
        self._listening = in_namespace(netns, lambda: listener(family(address), address, port, mark))
        self._listening.settimeout(None)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                sock, peer = self._listening.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(5)
                try:
                    destination = original_destination(sock)
                except NotRedirected:
                    destination = None
                self.seen.append(Seen(peer[0], destination))
                try:
                    sock.sendall(self.name.encode())
                    sock.shutdown(socket.SHUT_WR)
                    while sock.recv(65536):
                        pass
                except OSError:
                    pass

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        # Shutdown wakes the thread; a close alone would leave it in accept.
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join(5)


def as_user(uid: int) -> None:
    """What this thread opens from now on belongs to `uid`: meta skuid looks at the file, and files at this."""
    ctypes.CDLL(None).setfsuid(uid)


def reached(
    netns: str, address: str, port: int, uid: int = 0, mark: int = 0, source: str = "", transparent: bool = False
) -> str:
    """The name of the server that answers at the address; REFUSED, or the error's name when there is none."""

    def dial() -> str:
        as_user(uid)
        sock = socket.socket(family(address))
        with sock:
            sock.settimeout(3)
            if mark:
                sock.setsockopt(socket.SOL_SOCKET, SO_MARK, struct.pack("=I", mark))
            if transparent:
                sock.setsockopt(*((socket.IPPROTO_IPV6, 75) if ":" in address else (socket.IPPROTO_IP, 19)), 1)
            if source:
                sock.bind((source, 0))
            return _hear(sock, address, port)

    return in_namespace(netns, dial)


def _hear(sock: socket.socket, address: str, port: int) -> str:
    try:
        sock.connect((address, port))
        said = b""
        while part := sock.recv(100):
            said += part
    except (ConnectionRefusedError, ConnectionResetError):
        return REFUSED
    except TimeoutError:
        return "timeout"
    return said.decode()


_DIALLER = """
import encodings.idna, os, socket, sys  # all of it before the user changes, who may not read it
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
os.setuid(int(sys.argv[4]))
sock = socket.create_connection((sys.argv[2], int(sys.argv[3])), timeout=3)
print(sock.recv(100).decode(), end="")
"""


def reached_from_cgroup(netns: str, cgroup: str, address: str, port: int, uid: int = 0) -> str:
    """As `reached`, from a process in the cgroup directory."""
    command = [sys.executable, "-S", "-E", "-c", _DIALLER, cgroup, address, str(port), str(uid)]

    done = in_namespace(netns, lambda: subprocess.run(command, capture_output=True, text=True, timeout=10))
    if "ConnectionRefusedError" in done.stderr or "ConnectionResetError" in done.stderr:
        return REFUSED
    assert done.returncode == 0, done.stderr
    return done.stdout


def nft(netns: str, *words: str) -> str:
    """Runs nft inside the namespace, without hiding the cgroup tree as `ip netns exec` does."""
    done = in_namespace(netns, lambda: subprocess.run(["nft", *words], capture_output=True, text=True))
    assert done.returncode == 0, done.stderr
    return done.stdout


def ip(netns: str, *words: str) -> str:
    done = subprocess.run(["ip", "-n", netns, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def located(path: str) -> tuple[int, int] | None:
    """(level, id) of a cgroup."""
    return locate(path, mount_point() or "")


def unique() -> str:
    """A name that no other test process uses."""
    return f"cv-redir-{os.getpid()}"
