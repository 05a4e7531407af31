"""Connections that arrive while the worker they wait for keeps dying: reset, so that their callers learn it at once."""

import socket
import struct
from collections.abc import Callable, Iterable

import trio

LOOK = 0.02
"""Seconds between looks: a caller that is refused so late will call it at once."""
MOST = 1000
"""Connections of one socket at one look: what it queues beyond waits for the next, and the node does other things."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, with no time to linger: closing is a reset."""


async def turn_away(listening: Callable[[], Iterable[socket.socket]], turned: Callable[[int], None]) -> None:
    """Until cancelled. `listening` are the sockets that nobody accepts from now, asked for at each look; `turned` is
    called with how many were reset. Nothing is read of what callers sent."""
    while True:
        for sock in listening():
            if count := _turn_away(sock):
                turned(count)
        await trio.sleep(LOOK)


def _turn_away(sock: socket.socket) -> int:
    for count in range(MOST):
        try:
            # Whoever accepts here next wants it so as well: the mode is the socket's, not the process's.
            sock.setblocking(False)
            accepted, _ = sock.accept()
        except OSError:
            return count  # nobody waits, or it was closed meanwhile
        with accepted:
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    return MOST
