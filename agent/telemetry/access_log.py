"""One JSON line for each closed connection; the keys are stable. Both nodes write one, with the same `trace`."""

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

from agent.connections import Connection, Direction, Security, Verdict
from agent.telemetry.sink import Sink


class Line(msgspec.Struct, frozen=True, gc=False):
    """What a line says: the fields of a Connection, flat. `timestamp` is when it was taken down."""

    timestamp: datetime
    event: str
    id: str
    trace: str
    direction: Direction
    security: Security
    source_workload: str
    source_identity: str
    source_address: str
    destination_workload: str
    destination_identity: str
    destination_address: str
    sent: int
    received: int
    opened: float
    duration: float
    verdict: Verdict
    reason: str
    policy: str
    dry_run: str
    source_kept: bool
    opaque: bool
    tunnel: str


class AccessLog:
    """Writes to a Sink, which its owner closes."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self._encoder = msgspec.json.Encoder()

    def write(self, connections: Iterable[Connection]) -> None:
        """Queue the lines of connections that ended."""
        now = datetime.now(UTC)
        lines = [_line(now, c) for c in connections]
        self.sink.write(self._encoder.encode_lines(lines), len(lines))


def _line(now: datetime, c: Connection) -> Line:
    # round() with a number of digits goes by way of decimals, and takes longer than all the rest.
    return Line(
        now,
        "connection",
        c.id,
        c.trace,
        c.direction,
        c.security,
        c.source.workload,
        c.source.identity,
        c.source.address,
        c.destination.workload,
        c.destination.identity,
        c.destination.address,
        c.sent,
        c.received,
        round(c.opened * 1e3) / 1e3,
        round(c.duration * 1e6) / 1e6,
        c.verdict,
        c.reason,
        c.policy,
        c.dry_run,
        c.source_kept,
        c.opaque,
        c.tunnel,
    )
