"""HOST PORT RATE CONNECTIONS SECONDS: requests at a fixed rate, whatever the answers do.

Request i is due at i / RATE and belongs to connection i modulo CONNECTIONS. Its latency counts from when it was due, so
that an answer which holds up the next request is not forgotten (no coordinated omission). One GET is under way on a
connection at a time. Prints one line of JSON: microseconds by quantile, `requests` answered, and `bad`: wrong answers
and requests that were due and never answered.

select() and not epoll: it is the one of Python's waits that takes microseconds.
"""

import json
import select
import socket
import sys
import time
from collections import deque

REQUEST = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
BODY = b"x" * 1024
GRACE = 2.0


class Line:
    """One connection: what is due on it, and the answer that is coming in."""

    def __init__(self, host: str, port: int) -> None:
        self.sock = socket.create_connection((host, port), 10)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due: deque[float] = deque()
        self.busy = False
        self.answer = b""

    def fileno(self) -> int:
        return self.sock.fileno()

    def send(self) -> None:
        """Send the next request if one is due and none is under way."""
        if self.due and not self.busy:
            self.busy = True
            self.sock.sendall(REQUEST)

    def receive(self) -> bool | None:
        """Read; whether the answer was right, None while it is not whole. ConnectionError when there will be none."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionError
        self.answer += data
        head, gap, body = self.answer.partition(b"\r\n\r\n")
        if not gap or len(body) < len(BODY):
            return None
        self.answer, self.busy = b"", False
        return head.startswith(b"HTTP/1.1 200 ") and body == BODY


def run(host: str, port: int, rate: float, connections: int, seconds: float) -> dict[str, float]:
    lines = [Line(host, port) for _ in range(connections)]
    live = set(lines)
    total, asked, bad = int(rate * seconds), 0, 0
    latencies: list[float] = []
    start = time.monotonic() + 0.1
    while time.monotonic() < start + seconds + GRACE and (asked < total or any(line.due for line in live)):
        now = time.monotonic()
        while asked < total and start + asked / rate <= now:
            line = lines[asked % connections]
            line.due.append(start + asked / rate)
            line.send()
            asked += 1
        wait = start + asked / rate - time.monotonic() if asked < total else 0.1
        for line in select.select(list(live), (), (), max(wait, 0))[0]:
            try:
                right = line.receive()
            except OSError:
                live.discard(line)
                continue
            if right is not None:
                latencies.append(time.monotonic() - line.due.popleft())
                bad += not right
                line.send()
    return {"requests": len(latencies), "bad": bad + total - len(latencies), **quantiles(latencies)}


def quantiles(latencies: list[float]) -> dict[str, float]:
    """p50 to p99.9 and the worst, in microseconds."""
    ordered = sorted(latencies)
    if not ordered:
        return {}
    named = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999, "max": 1.0}
    return {name: ordered[min(int(q * len(ordered)), len(ordered) - 1)] * 1e6 for name, q in named.items()}


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]))))
