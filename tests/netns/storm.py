"""A program that dials without a pause while its own unit is restarted: `storm.py JSON [SINCE FD ...]`, see `main`.
Standard library only, for the system's Python.

A restart is what systemd does, only faster: the old cgroup is removed, a new one made under the same name, and the
program is in it and dials before anybody can have been told. A program that is a unit of systemd's own is restarted by
that. Prints after each round what became of all attempts so far, as JSON.
"""

import errno
import json
import os
import selectors
import signal
import socket
import sys
import time
from typing import Any


class Storm:
    """All attempts of one run."""

    def __init__(self, address: str, port: int, marker: bytes) -> None:
        self.address, self.port, self.marker = address, port, marker
        self.attempted = self.carried = self.refused = 0
        self.strange: dict[str, int] = {}
        self._selector = selectors.DefaultSelector()
        self._got: dict[socket.socket, bytes] = {}

    def attempt(self) -> None:
        """Begin a connection."""
        self.attempted += 1
        sock = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET)
        sock.setblocking(False)
        code = sock.connect_ex((self.address, self.port))
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            self._ended(code)
            return
        self._got[sock] = b""
        self._selector.register(sock, selectors.EVENT_WRITE)

    def adopt(self, attempts: int, fds: list[int]) -> None:
        """Go on with what a faster starter than Python has begun: of so many attempts, these descriptors are connected
        and have said the marker; the others were refused."""
        self.attempted += attempts
        self.refused += attempts - len(fds)
        for fd in fds:
            sock = socket.socket(fileno=fd)
            sock.setblocking(False)
            self._got[sock] = b""
            self._selector.register(sock, selectors.EVENT_READ)

    def round(self, attempts: int, pause: float) -> float:
        """So many attempts; the seconds between the first and the end of the last one's pause."""
        began = time.monotonic()
        for number in range(attempts):
            self.attempt()
            due = began + pause * max(0, number - 9)
            self.turn(max(0.0, due - time.monotonic()))
        return time.monotonic() - began

    def turn(self, seconds: float) -> None:
        """Serve what is under way for that long."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            for key, events in self._selector.select(max(0.0, left)) if self._got else ():
                self._move(key.fileobj, events)  # type: ignore[arg-type] # it is the socket that was registered
            if left <= 0:
                return
            if not self._got:
                time.sleep(left)

    def finish(self, seconds: float) -> None:
        """Wait for the last ones; those that never end are strange."""
        until = time.monotonic() + seconds
        while self._got and time.monotonic() < until:
            self.turn(0.01)
        for sock in list(self._got):
            self._close(sock)
            self._count("no end")

    def _move(self, sock: socket.socket, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, os.strerror(code))
                sock.send(self.marker)
                self._selector.modify(sock, selectors.EVENT_READ)
                return
            data = sock.recv(4096)
        except OSError as error:
            self._close(sock)
            self._ended(error.errno or 0)
            return
        self._got[sock] += data
        if self._got[sock] == self.marker:
            self._close(sock)
            self.carried += 1
        elif not data:
            self._close(sock)
            self._count("cut short")

    def _close(self, sock: socket.socket) -> None:
        del self._got[sock]
        self._selector.unregister(sock)
        sock.close()

    def _ended(self, code: int) -> None:
        if code in (errno.ECONNREFUSED, errno.ECONNRESET, errno.EPIPE):
            self.refused += 1
        else:
            self._count(errno.errorcode.get(code, str(code)))

    def _count(self, what: str) -> None:
        self.strange[what] = self.strange.get(what, 0) + 1


def restart(unit: str, parking: str) -> None:
    """A new cgroup under the old name, with us in it."""
    _enter(parking)
    for _ in range(1000):
        try:
            os.rmdir(unit)
            break
        except FileNotFoundError:
            break
        except OSError:
            time.sleep(0.001)  # the kernel needs a moment to see that nobody is in it
    os.mkdir(unit)
    _enter(unit)


def _enter(group: str) -> None:
    with open(os.path.join(group, "cgroup.procs"), "w") as procs:
        procs.write("0")


def ready() -> None:
    """Tell the systemd that started us, if one did, that our first round is over."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", address.replace("@", "\0", 1))


def own_cgroup() -> int:
    """The kernel's id of the cgroup that we are in, which no other ever gets."""
    with open("/proc/self/mounts") as mounts, open("/proc/self/cgroup") as groups:
        root = next(line.split()[1] for line in mounts if line.split()[2] == "cgroup2")
        path = next(line.rstrip()[3:] for line in groups if line.startswith("0::"))
    return os.stat(root + path).st_ino


def main(orders: dict[str, Any], since: float = 0.0, *fds: int) -> None:
    """`unit` and `parking` are directories of cgroups; every so many rounds (`restarts`, 0 for never) the unit is
    restarted. `rounds` of `attempts` each, `pause` seconds apart; the first ten of a round come at once, and so do
    those that a busy machine has held up. SIGTERM ends it with the round. `rate` is that of all rounds together, in
    attempts a second, `slowest` that of the slowest.

    `early` attempts were made for us from the time `since` on; they count as a part of the first round. With `floor`,
    a round that was slower, because the machine was busy, is not one of the `rounds`: there is another one for it, up
    to twice as many altogether. `fast` are those that were not."""
    storm = Storm(orders["address"], orders["port"], orders["marker"].encode())
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    storm.adopt(early := orders.get("early", 0), list(fds))
    spent, slowest, fast, floor = 0.0, float("inf"), 0, orders.get("floor", 0.0)
    for turn in range(orders["rounds"] * (2 if floor else 1)):
        if orders["restarts"] and turn % orders["restarts"] == 0:
            restart(orders["unit"], orders["parking"])
        made, took = orders["attempts"], storm.round(orders["attempts"], orders["pause"])
        if early and turn == 0:
            made, took = made + early, time.time() - since
        spent, slowest, fast = spent + took, min(slowest, made / took), fast + (made / took >= floor)
        storm.finish(15.0)  # a SYN that a busy machine lost twice comes again after 7 s
        facts = {"attempted": storm.attempted, "carried": storm.carried, "refused": storm.refused}
        rates = {"rate": storm.attempted / spent, "slowest": slowest, "rounds": turn + 1, "fast": fast}
        own = {"pid": os.getpid(), "cgroup": own_cgroup()}
        print(json.dumps({**facts, "strange": storm.strange, **rates, **own}), flush=True)
        if turn == 0:
            ready()
        if told or fast == orders["rounds"]:
            break
    if orders["restarts"]:
        _enter(orders["parking"])


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), *map(float, sys.argv[2:3]), *map(int, sys.argv[3:]))
