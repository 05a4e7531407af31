"""The worker's ends of the listening sockets. The supervisor keeps its own open, so closing one here loses no queue."""

import errno
import resource
import socket
from collections.abc import Callable, Set
from functools import partial

from agent.messages import Role
from agent.relay.loop import ACCEPT, Relay

Accepted = Callable[[str, socket.socket, tuple[str, int]], None]
"""(workload or "", the connection, which now belongs to the callee, the caller's address)"""

_BURST = 16  # connections taken from one listener in one round: what a neighbour's waits for, when another is flooded
_SPARE = 64  # descriptors left when it rests: a connection that was taken needs more of them, and so does a view
_PASSING = frozenset(
    {
        *(errno.ECONNABORTED, errno.EAGAIN, errno.EINTR, errno.EPERM, errno.ETIMEDOUT),
        # What accept(2) hands on of the new connection's own network errors.
        *(errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET),
        *(errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
    }
)
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class _Listening(socket.socket):
    """Takes over a listening socket. Each accept asks for both of these, and Python's own looks them up by name."""

    def __init__(self, sock: socket.socket) -> None:
        self._family = sock.family
        super().__init__(fileno=sock.detach())

    @property
    def family(self) -> socket.AddressFamily:
        return self._family

    @property
    def type(self) -> socket.SocketKind:
        return socket.SOCK_STREAM


class Listeners:
    """Accepts in the relay's rounds, level-triggered: what is left in a queue comes round again.

    When descriptors or memory are all but out the listener rests until `resume`, and callers wait in its queue: it
    would be ready all the time, to no end. So do those in `storming`, by role and workload.
    """

    def __init__(self, relay: Relay, accepted: dict[Role, Accepted]) -> None:
        self._relay, self._accepted = relay, accepted
        self._socks: dict[int, socket.socket] = {}
        self._resting: dict[int, Callable[[], None]] = {}
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._last = limit - min(_SPARE, limit // 8)  # the kernel gives the lowest number that is free
        self.storming: Set[tuple[Role, str]] = frozenset()

    def add(self, number: int, role: Role, workload: str, sock: socket.socket) -> None:
        """Accept at `sock`, which is ours from here."""
        self.remove(number)
        sock = _Listening(sock)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        self._socks[number] = sock
        ready = partial(self._ready, number, sock, role, workload)
        self._relay.register(sock.fileno(), ready, ACCEPT)

    def remove(self, number: int) -> None:
        """Accept no more there."""
        sock = self._socks.pop(number, None)
        self._resting.pop(number, None)
        if sock is not None:
            self._relay.unregister(sock.fileno())
            sock.close()

    def close(self) -> None:
        """Accept no more at all."""
        for number in list(self._socks):
            self.remove(number)

    def resume(self) -> None:
        """Try again where descriptors or memory had run out; to be called now and then."""
        resting, self._resting = self._resting, {}
        for register in resting.values():
            register()

    def _ready(self, number: int, sock: socket.socket, role: Role, workload: str, _mask: int) -> None:
        accepted = self._accepted[role]
        for _ in range(_BURST):
            try:
                connection, peer = sock.accept()
            except OSError as error:
                if error.errno in _PASSING:
                    return
                if error.errno in _SHORT:
                    self._rest(number, sock, role, workload)
                    return
                raise
            connection.setblocking(False)
            short = connection.fileno() >= self._last
            accepted(workload, connection, peer)
            if short or (self.storming and (role, workload) in self.storming):
                self._rest(number, sock, role, workload)
                return

    def _rest(self, number: int, sock: socket.socket, role: Role, workload: str) -> None:
        fd, ready = sock.fileno(), partial(self._ready, number, sock, role, workload)
        self._relay.unregister(fd)
        self._resting[number] = partial(self._relay.register, fd, ready, ACCEPT)
