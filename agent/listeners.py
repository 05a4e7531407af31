"""The worker's ends of the listening sockets. The supervisor keeps its own open, so closing one here loses no queue."""

import errno
import socket
from collections.abc import Callable
from functools import partial

from agent.messages import Role
from agent.relay.loop import ACCEPT, Relay

Accepted = Callable[[str, socket.socket, tuple[str, int]], None]
"""(workload or "", the connection, which now belongs to the callee, the caller's address)"""

_BURST = 64  # connections taken from one listener in one round
_PASSING = frozenset(
    {errno.ECONNABORTED, errno.EAGAIN, errno.EINTR, errno.ENETDOWN, errno.EPROTO, errno.EHOSTUNREACH, errno.ENETUNREACH}
)


class Listeners:
    """Accepts in the relay's rounds, level-triggered: what is left in a queue comes round again."""

    def __init__(self, relay: Relay, accepted: dict[Role, Accepted]) -> None:
        self._relay, self._accepted = relay, accepted
        self._socks: dict[int, socket.socket] = {}

    def add(self, number: int, role: Role, workload: str, sock: socket.socket) -> None:
        """Accept at `sock`, which is ours from here."""
        self.remove(number)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        self._socks[number] = sock
        self._relay.register(sock.fileno(), partial(self._ready, sock, self._accepted[role], workload), ACCEPT)

    def remove(self, number: int) -> None:
        """Accept no more there."""
        sock = self._socks.pop(number, None)
        if sock is not None:
            self._relay.unregister(sock.fileno())
            sock.close()

    def close(self) -> None:
        """Accept no more at all."""
        for number in list(self._socks):
            self.remove(number)

    def _ready(self, sock: socket.socket, accepted: Accepted, workload: str, _mask: int) -> None:
        for _ in range(_BURST):
            try:
                connection, peer = sock.accept()
            except OSError as error:
                if error.errno in _PASSING:
                    return
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    return  # the caller waits in the queue until something is closed
                raise
            connection.setblocking(False)
            accepted(workload, connection, peer)
