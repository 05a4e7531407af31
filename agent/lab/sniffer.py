"""Listens on one end of a cable and counts what could be read there.

An AF_PACKET socket opened inside the namespace of the wire. It sees both directions, each packet once. What the kernel
had to drop because we read too slowly is counted as `lost`: a count with losses proves nothing, and says so.
"""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from agent.lab.leaks import Leaks
from agent.lab.topology import Topology

_ETH_P_ALL = 3
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_SO_RCVBUFFORCE = 33
_BUFFER = 64 * 2**20
"""Bytes of packets that may wait for us: more than a run sends between two reads."""


class Sniffer:
    """One open tap; get it from `sniff` or `tap`. Counts accumulate in `leaks`, replaced by `restart`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.leaks = Leaks(b"\0" * 64)
        self._lost = 0

    def restart(self, marker: bytes) -> None:
        """Forget all counts and look for `marker` from now on."""
        self.drain()
        self.leaks, self._lost = Leaks(marker), 0

    def drain(self) -> None:
        """Count everything that has passed so far: the kernel queues a packet here before its receiver sees it."""
        while True:
            try:
                data, (_, ethertype, *_) = self._sock.recvfrom(2**17)
            except BlockingIOError:
                return
            self.leaks.packet(ethertype, data)

    @property
    def lost(self) -> int:
        """Packets that passed and were not looked at since the last `restart`."""
        _, dropped = struct.unpack("II", self._sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
        self._lost += dropped  # reading it resets the kernel's figure
        return self._lost

    async def run(self) -> None:
        """Keep counting until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            self.drain()


def tap(sock: socket.socket, port: str) -> Sniffer:
    """Make an ear of an AF_PACKET socket (SOCK_DGRAM), on `port` of its namespace. The caller closes the socket."""
    sock.setblocking(False)
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
    except PermissionError:  # an ordinary user gets what the system allows
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    sock.bind((port, _ETH_P_ALL))
    return Sniffer(sock)


@asynccontextmanager
async def sniff(topology: Topology, port: str) -> AsyncIterator[Sniffer]:
    """Listen on `port` of the wire, as in `Machine.port`; closed with the block."""
    with topology.wire.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        sniffer = tap(sock, port)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sniffer.run)
            try:
                yield sniffer
            finally:
                nursery.cancel_scope.cancel()
