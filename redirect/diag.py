"""The TCP sockets of a network namespace as the kernel lists them (sock_diag), and ending one from outside. Blocking.

Layouts are those of linux/inet_diag.h. An IPv4 connection of a dual-stack socket is listed under IPv6 with a mapped
address; here it has its plain one.
"""

import errno
import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from redirect.frames import attributes
from redirect.namespace import in_namespace
from redirect.netlink import Netlink, Refused

SOCK_DIAG = 4
"""NETLINK_SOCK_DIAG."""
BY_FAMILY, DESTROY = 20, 21
ESTABLISHED, SYN_SENT, SYN_RECEIVED, FIN_WAIT1, FIN_WAIT2, TIME_WAIT, CLOSE, CLOSE_WAIT, LAST_ACK, LISTEN = range(1, 11)
"""States of linux/net/tcp_states.h."""
ALL = 0xFFF
"""Bits of all states, as `1 << LISTEN` is the one of listening sockets."""
_MARK, _CGROUP = 15, 21


class Undestroyable(Exception):
    """A socket cannot be ended from outside; the message says why."""


@dataclass(frozen=True, slots=True)
class Sock:
    """One TCP socket. `local` and `remote` are (address, port); `inode` is 0 once no process has it. `mark` is 0 for
    callers without CAP_NET_ADMIN, and `cgroup` (the inode of its directory) on kernels before 5.9."""

    local: tuple[str, int]
    remote: tuple[str, int]
    state: int
    uid: int
    inode: int
    mark: int
    cgroup: int
    family: int
    identity: bytes
    """In the kernel's own layout; with the cookie, so that it never means a later socket."""


class Sockets:
    """The TCP sockets of one network namespace: the caller's own, or `netns` (a name or path). Who opens it closes it.

    Opening raises OSError or NamespaceError."""

    def __init__(self, netns: str | None = None) -> None:
        def opened() -> Netlink:
            return Netlink(SOCK_DIAG)

        self._netlink = in_namespace(netns, opened) if netns else opened()

    def close(self) -> None:
        self._netlink.close()

    def __enter__(self) -> "Sockets":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def listed(self, states: int = ALL) -> Iterator[Sock]:
        """Those in one of the states. OSError when the kernel has no answer."""
        return map(_sock, self._rows(states))

    def identities(self, states: int = ALL) -> frozenset[bytes]:
        """Of the same, and nothing else: a tenth of the work, for who wants to know whether something has changed."""
        return frozenset(row[4:52] for row in self._rows(states))

    def _rows(self, states: int) -> Iterator[bytes]:
        for family in (socket.AF_INET, socket.AF_INET6):
            request = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, states)
            try:
                yield from self._netlink.whole(BY_FAMILY, request, "a listing of sockets")
            except Refused as refused:
                if family == socket.AF_INET6 and refused.code in (errno.ENOENT, errno.EAFNOSUPPORT):
                    continue  # no IPv6 in this kernel
                raise OSError(refused.code, f"the kernel lists no TCP sockets: {refused.refusal}") from refused

    def destroy(self, sock: Sock) -> bool:
        """End the connection: both sides see a reset. False when it was gone already. Undestroyable."""
        request = struct.pack("=BBBBI", sock.family, socket.IPPROTO_TCP, 0, 0, 1 << sock.state) + sock.identity
        try:
            self._netlink.ask(DESTROY, request, "the end of a socket")
        except Refused as refused:
            if refused.code == errno.ENOENT:
                return False
            cause = {
                errno.EOPNOTSUPP: "this kernel cannot end other programs' sockets (it is built without "
                "CONFIG_INET_DIAG_DESTROY): restart the program instead",
                errno.EPERM: "it takes CAP_NET_ADMIN over the network namespace: run as root",
            }.get(refused.code, str(refused.refusal))
            raise Undestroyable(cause) from refused
        return True


def _sock(row: bytes) -> Sock:
    """inet_diag_msg: family, state, timer, retransmits; ports, addresses, interface, cookie; expiry, two queues, uid,
    inode; attributes."""
    family, state = row[0], row[1]
    local_port, remote_port = struct.unpack_from("!HH", row, 4)
    uid, inode = struct.unpack_from("=II", row, 64)
    found = dict(attributes(row[72:]))
    return Sock(
        (_address(family, row[8:24]), local_port),
        (_address(family, row[24:40]), remote_port),
        state,
        uid,
        inode,
        int.from_bytes(found.get(_MARK, b""), sys.byteorder),
        int.from_bytes(found.get(_CGROUP, b""), sys.byteorder),
        family,
        row[4:52],
    )


def _address(family: int, data: bytes) -> str:
    if family == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, data[:4])
    address = ipaddress.IPv6Address(data)
    return str(address.ipv4_mapped or address)
