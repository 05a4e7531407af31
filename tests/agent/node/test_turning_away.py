"""Real connections that nobody will accept."""

import socket

import pytest
import trio

from agent.node.turning_away import turn_away


async def test_everybody_is_reset_and_counted(nursery: trio.Nursery) -> None:
    refused: list[int] = []
    with socket.create_server(("127.0.0.1", 0), backlog=200) as sock, socket.create_server(("127.0.0.1", 0)) as gone:
        callers = [socket.create_connection(sock.getsockname()) for _ in range(100)]
        callers[0].sendall(b"read by nobody")
        gone.close()  # a workload went meanwhile
        nursery.start_soon(turn_away, lambda: [gone, sock], refused.append)
        for caller in callers:
            async with trio.SocketStream(trio.socket.from_stdlib_socket(caller)) as stream:
                with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
        assert sum(refused) == 100
        nursery.cancel_scope.cancel()
