"""What workers report of connections, taken down: counted, logged, and the last ones kept to be asked about."""

from collections import Counter, deque
from collections.abc import Callable

from agent.connections import Connection, Direction
from agent.messages import Closed
from agent.telemetry.access_log import AccessLog
from agent.telemetry.metrics import TcpCounts

KEEP = 1000
"""Closed connections kept: some 600 KB."""


class Ledger:
    """`clock` is monotonic; without `access_log` nothing is written."""

    def __init__(self, access_log: AccessLog | None, clock: Callable[[], float]) -> None:
        self.counts = TcpCounts()
        self.dropped = 0
        self.over_budget: Counter[tuple[str, str]] = Counter()
        """Connections by the workload whose limit refused them, and direction."""
        self.closed: deque[Connection] = deque(maxlen=KEEP)
        self._access_log = access_log
        self._clock = clock

    def take(self, message: Closed) -> None:
        """From a worker."""
        now = self._clock()
        self.dropped += message.dropped
        self.closed.extend(message.connections)
        for connection in message.connections:
            self.counts.closed(connection, now)
            if connection.over_budget:
                outbound = connection.direction is Direction.OUTBOUND
                whose = connection.source if outbound else connection.destination
                self.over_budget[whose.workload, connection.direction.value] += 1
        if self._access_log and message.connections:
            self._access_log.write(message.connections)
