"""What the agent itself says to an application before the first byte of its caller."""

import errno
import socket


def begin(sock: socket.socket, preface: bytes) -> int:
    """Send `preface` over a connection that was just made; 0, or the errno of what went wrong. So few bytes always fit
    the empty buffer of a new connection, and they count neither as the caller's nor against any window."""
    if not preface:
        return 0
    try:
        return 0 if sock.send(preface) == len(preface) else errno.ENOBUFS
    except OSError as error:
        return error.errno or errno.EIO
