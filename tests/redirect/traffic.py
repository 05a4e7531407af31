"""Connections made inside namespaces."""

import socket

from redirect.namespace import in_namespace


def tcp_pair(netns: str, listening: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A client connected to `listening` inside the namespace, and what was accepted."""
    address = listening.getsockname()
    client = in_namespace(netns, lambda: socket.create_connection(address[:2], timeout=5))
    listening.settimeout(5)
    return client, listening.accept()[0]
