"""HOST PORT SECONDS RATE: short connections of every kind, RATE a second, one after the other.

Some do what they should, some end in the middle, as real clients do. Prints one line of JSON: connections, and `bad`:
those that should have got a whole answer and did not.
"""

import json
import socket
import struct
import sys
import time

BODY = b"x" * 1024
CLOSE = b"GET %s HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"


def whole(sock: socket.socket) -> bool:
    """A request and its answer, closed by the server."""
    sock.sendall(CLOSE % b"/")
    return rest(sock).endswith(BODY)


def half_closed(sock: socket.socket) -> bool:
    """The client has nothing more to say before the answer begins."""
    sock.sendall(CLOSE % b"/")
    sock.shutdown(socket.SHUT_WR)
    return rest(sock).endswith(BODY)


def silent(sock: socket.socket) -> bool:
    """Opened and closed."""
    return True


def unread(sock: socket.socket) -> bool:
    """Closed while the answer is under way."""
    sock.sendall(CLOSE % b"/blob")
    return bool(sock.recv(65536))


def reset(sock: socket.socket) -> bool:
    """Broken off by a reset while the answer is under way."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return unread(sock)


def partial(sock: socket.socket) -> bool:
    """Gone in the middle of a request."""
    sock.sendall(b"GET / HT")
    return True


KINDS = (whole, half_closed, whole, silent, whole, unread, whole, reset, whole, partial)


def rest(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def run(host: str, port: int, seconds: float, rate: float) -> dict[str, int]:
    start, count, bad = time.monotonic(), 0, 0
    while (due := start + count / rate) < start + seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        try:
            with socket.create_connection((host, port), 10) as sock:
                bad += not KINDS[count % len(KINDS)](sock)
        except OSError:
            bad += 1
        count += 1
    return {"connections": count, "bad": bad}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4]))))
