"""Whose socket is at the other end of a captured connection: one question to sock_diag, answered in microseconds.

Workers import this file, so it knows the standard library and `frames` only. Layouts are those of linux/inet_diag.h;
anybody may ask.
"""

import socket
import struct
import sys
from dataclasses import dataclass

from redirect.frames import attributes, split

_SOCK_DIAG, _BY_FAMILY, _REQUEST, _ERROR = 4, 20, 1, 2
_CGROUP = 21
_NO_COOKIE = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Caller:
    """The user that made the socket, and the id of the cgroup it was made in; 0 on kernels before 5.9."""

    uid: int
    cgroup: int


class Callers:
    """Asks about sockets of the network namespace it was made in. Who makes it closes it; OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG)
        self._number = 0

    def close(self) -> None:
        self._socket.close()

    def find(self, local: tuple[str, int], remote: tuple[str, int]) -> Caller | None:
        """Who has the TCP socket that connects `local` to `remote`, as its owner sees them; None when nobody has it any
        more. OSError when the kernel has no answer."""
        family = socket.AF_INET6 if ":" in local[0] else socket.AF_INET
        self._number += 1
        request = (
            struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, 0xFFF)
            + struct.pack("!HH", local[1], remote[1])
            + b"".join(socket.inet_pton(family, end[0]).ljust(16, b"\0") for end in (local, remote))
            + struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
        )
        header = struct.pack("=IHHII", 16 + len(request), _BY_FAMILY, _REQUEST, self._number, 0)
        # The kernel works while it is being sent to: what it says is there when the call returns.
        self._socket.send(header + request)
        while True:
            for answer in split(self._socket.recv(65536)):
                if answer.number != self._number:
                    continue
                if answer.kind != _ERROR:
                    return _caller(answer.payload)
                code = -int.from_bytes(answer.payload[:4], sys.byteorder, signed=True)
                if code == 2:  # ENOENT
                    return None
                raise OSError(code, "the kernel does not tell whose a socket is")


def _caller(row: bytes) -> Caller:
    """inet_diag_msg, as in `diag`."""
    found = dict(attributes(row[72:]))
    return Caller(struct.unpack_from("=I", row, 64)[0], int.from_bytes(found.get(_CGROUP, b""), sys.byteorder))
