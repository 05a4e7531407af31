"""A worker that carries nothing: it notes what it is told, and answers each connection with what it knows.

    fake_worker.py MODE FD

MODE: `good`; `mute` (answers nothing after Ready); `mad` (says nonsense when told to listen); `dead` (ends at once);
`greedy` (asks for sockets when told of a namespaced workload, and dials with them); `lengthy` (answers in
several messages).
"""

import os
import socket
import sys

import msgspec
import trio

from agent.channel import ChannelClosedError, worker_end
from agent.connections import Connection, Direction, Party, Security, Verdict
from agent.messages import (
    Active,
    Closed,
    Configure,
    Drain,
    Identity,
    Inquire,
    Listen,
    Namespaced,
    Notice,
    Ready,
    Roots,
    Stock,
    StockWanted,
    Tables,
    Unlisten,
    View,
)

_CONNECTIONS = [
    Connection(f"1.{n}", Direction.INBOUND, Party(), Party(), Security.MTLS, 1.0, Verdict.ALLOWED) for n in (1, 2, 3)
]


async def main(mode: str, fd: int) -> None:
    sock = socket.socket(fileno=fd)
    channel = worker_end(sock.dup())
    told: list[str] = []
    facts: dict[str, object] = {"pid": os.getpid(), "told": told}
    scopes: dict[int, trio.CancelScope] = {}

    async def serve(listener: Listen, sock: socket.socket) -> None:
        with scopes[listener.listener], trio.socket.from_stdlib_socket(sock) as listening:
            while True:
                connection, peer = await listening.accept()
                number = f"{facts['worker']}.{peer[1]}"
                record = Connection(
                    number,
                    Direction.OUTBOUND,
                    Party(listener.workload, address=f"{peer[0]}:{peer[1]}"),
                    Party(),
                    Security.PLAINTEXT,
                    0.0,
                    Verdict.ALLOWED,
                )
                with connection:
                    await connection.send(msgspec.json.encode(facts))
                await channel.send(Closed([record]))

    async with trio.open_nursery() as nursery:
        while True:
            try:
                message, fds = await channel.receive()
            except ChannelClosedError:
                nursery.cancel_scope.cancel()
                return
            told.append(type(message).__name__)
            if mode == "mute" and told[:-1]:
                continue
            match message:
                case Configure():
                    if mode == "dead":
                        os._exit(3)
                    facts["spoof"], facts["capturing"] = message.spoof_mark, message.capturing
                    if "worker" in facts:
                        continue
                    facts["worker"] = message.worker
                    await channel.send(Ready(os.getpid()))
                    await channel.send(Notice("warning", "hello", {"level": "x"}))
                case Roots(pem):
                    facts["roots"] = pem.decode()
                case Identity(uri):
                    facts["identity"] = uri
                case View(revision, put):
                    facts["objects"] = len(put) + (0 if message.reset else int(facts.get("objects", 0)))
                    facts["revision"] = revision
                    await channel.send(Active(revision))
                case Listen(number):
                    if mode == "mad":
                        sock.send(b"\xff" * 64)
                    facts["listeners"] = [*facts.get("listeners", ()), message.workload]
                    scopes[number] = trio.CancelScope()
                    nursery.start_soon(serve, message, socket.socket(fileno=fds[0]))
                case Unlisten(number):
                    if number in scopes:
                        scopes[number].cancel()
                case Namespaced(workloads):
                    facts["namespaced"] = workloads
                    if mode == "greedy":
                        for name in workloads:
                            await channel.send(StockWanted(name, socket.AF_INET, 3))
                            await channel.send(StockWanted(name, 99, 3))
                            await channel.send(StockWanted("no/body", socket.AF_INET, 3))
                case Stock(workload):
                    reached = []
                    for each in fds:
                        with socket.socket(fileno=each) as inside:
                            reached.append(inside.connect_ex(("127.0.0.1", 7)))
                    await channel.send(Notice("info", "stocked", {"workload": workload, "results": str(reached)}))
                case Inquire(number):
                    if mode == "lengthy":
                        await channel.send(Tables(number, _CONNECTIONS[:2], [], more=True))
                        await channel.send(Tables(number, _CONNECTIONS[2:], [], {"connections": 3}))
                        continue
                    await channel.send(Tables(number, [], [], {"connections": 1}))
                case Drain():
                    nursery.cancel_scope.cancel()
                    return


if __name__ == "__main__":
    trio.run(main, sys.argv[1], int(sys.argv[2]))
