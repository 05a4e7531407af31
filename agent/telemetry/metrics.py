"""What Prometheus is told: Istio's standard TCP counters, under its names and labels, and facts of our own.

The counts are kept here in plain dictionaries; prometheus_client is imported for the first scrape only, and writes them
out. A live connection and its bytes are counted as they come, at each scrape; a series that nothing was added to for
IDLE seconds is forgotten, so that workloads that are gone do not stay for ever.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from agent.clock import Skew
from agent.connections import Connection, Direction, Security, Verdict
from agent.telemetry.decisions import Decisions
from ca.lifetimes import Standing

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

IDLE = 600.0
SERIES = 10_000
"""Series kept; beyond it the longest idle goes first. A node has far fewer pairs of workloads."""

LABELS = (
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_service",
    "request_protocol",
    "connection_security_policy",
    "response_flags",
)
_SECURITY = {Security.MTLS: "mutual_tls", Security.PLAINTEXT: "none", Security.LOCAL: "local"}
_FLAGS = {Verdict.ALLOWED: "-", Verdict.REFUSED: "DENY", Verdict.FAILED: "CONNECT"}


@dataclass(slots=True)
class _Series:
    opened: int = 0
    closed: int = 0
    failed: int = 0
    sent: int = 0
    received: int = 0
    touched: float = 0.0


class TcpCounts:
    """Counts connections; `now` is a monotonic time in seconds."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, ...], _Series] = {}
        self._counted: dict[str, tuple[int, int, float]] = {}
        self.decisions = Decisions()

    def closed(self, connection: Connection, now: float) -> None:
        """It ended, or never began."""
        allowed = connection.verdict is Verdict.ALLOWED
        series = self._at(connection, connection.verdict, now)
        if allowed:
            series.closed += 1
        else:
            series.failed += 1
        if connection.carried:
            known = self._counted.pop(connection.id, None)
            self._carried(connection, known, series if allowed else self._at(connection, Verdict.ALLOWED, now))
        else:
            self.decisions.began(connection)
        self.decisions.ended(connection)

    def live(self, connections: Iterable[Connection], now: float) -> None:
        """Those that are carried now, with what they have carried so far; some may be missing for once, because their
        worker was slow to answer."""
        for connection in connections:
            if connection.carried:
                known, moved = self._counted.get(connection.id), (connection.sent, connection.received)
                if known is None or known[:2] != moved:
                    self._carried(connection, known, self._at(connection, Verdict.ALLOWED, now))
                self._counted[connection.id] = *moved, now
        self._counted = {k: c for k, c in self._counted.items() if now - c[2] < IDLE}

    def rows(self, now: float) -> list[tuple[tuple[str, ...], _Series]]:
        """Labels and counts, idle ones forgotten."""
        self._series = {k: s for k, s in self._series.items() if now - s.touched < IDLE}
        return sorted(self._series.items())

    def _carried(self, connection: Connection, known: tuple[int, int, float] | None, series: _Series) -> None:
        """Count that it was opened, once, and the bytes that were not counted yet: `known` are those that were."""
        if known is None:
            self.decisions.began(connection)
            series.opened += 1
            series.sent += connection.sent
            series.received += connection.received
        else:
            series.sent += max(0, connection.sent - known[0])
            series.received += max(0, connection.received - known[1])

    def _at(self, connection: Connection, verdict: Verdict, now: float) -> _Series:
        source, destination = connection.source, connection.destination
        key = _labels(
            connection.direction,
            source.workload,
            source.identity,
            destination.workload,
            destination.identity,
            connection.security,
            "UO" if connection.over_budget else _FLAGS[verdict],
        )
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= SERIES:
                del self._series[min(self._series, key=lambda k: self._series[k].touched)]
            series = self._series[key] = _Series()
        series.touched = now
        return series


@dataclass(frozen=True, slots=True)
class Facts:
    """What else a scrape shows. `expiry` is unix time by identity, `standing` certificates by good, late and ended;
    `captured`, `bypassed` and `passed` are connections by workload, `unmeshed` packets by workload and what became of
    them, `over_budget` connections by workload and direction. `restored` tables were put back that others had changed,
    with `not_captured` seconds until then, all together. `held` are packets by what became of them, and `asked`
    connections, of callers of the mesh that no rule knew; `unnamed` connections of such that passed, by whose."""

    expiry: Mapping[str, float] = field(default_factory=dict)
    standing: Mapping[str, int] = field(default_factory=dict)
    renewal_failures: Mapping[str, int] = field(default_factory=dict)
    captured: Mapping[str, int] = field(default_factory=dict)
    bypassed: Mapping[str, int] = field(default_factory=dict)
    passed: Mapping[str, int] = field(default_factory=dict)
    unmeshed: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    asked: int = 0
    unnamed: Mapping[str, int] = field(default_factory=dict)
    over_budget: Mapping[tuple[str, str], int] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)
    restored: int = 0
    not_captured: float = 0.0
    log_dropped: int = 0
    records_dropped: int = 0
    worker_restarts: int = 0
    workers: int = 0
    revision: int = 0
    centre_connected: bool = False
    skew: Skew | None = None


def exposition(counts: TcpCounts, facts: Facts, now: float) -> bytes:
    """The page that Prometheus reads, in its text format."""
    from prometheus_client import generate_latest
    from prometheus_client.registry import Collector

    class Page(Collector):
        def collect(self) -> Iterable["Metric"]:
            return [*_tcp(counts, now), *_own(facts)]

    return generate_latest(Page())


def _tcp(counts: TcpCounts, now: float) -> Iterable["Metric"]:
    from prometheus_client.metrics_core import CounterMetricFamily

    rows = counts.rows(now)
    for name, text, count in (
        ("istio_tcp_connections_opened", "Connections that began to be carried.", "opened"),
        ("istio_tcp_connections_closed", "Connections that were carried and ended.", "closed"),
        ("istio_tcp_connections_failed", "Connections refused by policy or not possible.", "failed"),
        ("istio_tcp_sent_bytes", "Bytes from source to destination.", "sent"),
        ("istio_tcp_received_bytes", "Bytes from destination to source.", "received"),
    ):
        metric = CounterMetricFamily(name, text, labels=LABELS)
        for labels, series in rows:
            if value := getattr(series, count):
                metric.add_metric(labels, value)
        yield metric
    decisions = CounterMetricFamily(
        "culvert_policy_decisions",
        "Connections to workloads of this node, by what decided over them.",
        labels=["decision", "policy", "reason"],
    )
    for said, connections in counts.decisions.rows():
        decisions.add_metric(said, connections)
    yield decisions


def _own(facts: Facts) -> Iterable["Metric"]:
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily

    expiry = GaugeMetricFamily(
        "culvert_certificate_expiry_timestamp_seconds", "When the certificate ends, unix time.", labels=["identity"]
    )
    for uri, end in sorted(facts.expiry.items()):
        expiry.add_metric([uri], end)
    yield expiry
    states = GaugeMetricFamily("culvert_certificates", "Certificates held, by how they are.", labels=["state"])
    for state in Standing:
        states.add_metric([state.value], facts.standing.get(state.value, 0))
    yield states
    failures = CounterMetricFamily(
        "culvert_certificate_renewal_failures", "Requests for a certificate that came to nothing.", labels=["what"]
    )
    for what, count in sorted(facts.renewal_failures.items()):
        failures.add_metric([what], count)
    yield failures
    for name, text, by_workload in (
        ("culvert_captured_connections", "Connections that the kernel sent to the agent.", facts.captured),
        ("culvert_bypassed_connections", "Connections to no mesh address, left in the kernel.", facts.bypassed),
        ("culvert_passed_connections", "Passed in clear while the agent was away (failMode open).", facts.passed),
    ):
        metric = CounterMetricFamily(name, text, labels=["workload"])
        for workload, count in sorted(by_workload.items()):
            metric.add_metric([workload], count)
        yield metric
    unnamed = CounterMetricFamily(
        "culvert_passed_unnamed_connections",
        "Passed in clear while the agent was away, of new units and containers that nobody could name.",
        labels=["of"],
    )
    for whose, count in facts.unnamed.items():
        unnamed.add_metric([whose], count)
    yield unnamed
    refused = CounterMetricFamily(
        "culvert_over_budget_connections",
        "Connections that a limit of their workload refused.",
        labels=["workload", "direction"],
    )
    for labels, count in sorted(facts.over_budget.items()):
        refused.add_metric(labels, count)
    yield refused
    packets = CounterMetricFamily(
        "culvert_unmeshed_packets",
        "Packets of workloads that are not TCP, so that the mesh does not carry them.",
        labels=["workload", "fate"],
    )
    for workload, fates in sorted(facts.unmeshed.items()):
        for fate, count in fates.items():
            packets.add_metric([workload, fate], count)
    yield packets
    held = CounterMetricFamily(
        "culvert_held_packets",
        "Calls of the mesh out of network namespaces without rules: held until they have some, or refused; calls of "
        "workloads in such namespaces: delayed until they have some, or (sheltered) refused while the agent was away.",
        labels=["fate"],
    )
    for fate, count in facts.held.items():
        held.add_metric([fate], count)
    yield held
    for name, text, total in (
        ("culvert_asked_connections", "Of cgroups no rule knew: held until the kernel had named them.", facts.asked),
        ("culvert_tables_restored", "Tables of ours put back after others had changed them.", facts.restored),
        ("culvert_not_captured_seconds", "Until they were: nothing was captured there.", facts.not_captured),
        ("culvert_access_log_dropped", "Access log lines lost: the log's sink was blocked.", facts.log_dropped),
        ("culvert_connection_records_dropped", "Records of closed connections lost by workers.", facts.records_dropped),
        ("culvert_worker_restarts", "Workers that died and were replaced.", facts.worker_restarts),
    ):
        yield CounterMetricFamily(name, text, value=total)
    for name, value in (
        ("culvert_workers", facts.workers),
        ("culvert_active_revision", facts.revision),
        ("culvert_centre_connected", int(facts.centre_connected)),
    ):
        yield GaugeMetricFamily(name, _TEXTS[name], value=value)
    if facts.skew:
        for name, amount in (("ahead", facts.skew.ahead), ("uncertainty", facts.skew.uncertainty)):
            yield GaugeMetricFamily(f"culvert_clock_{name}_seconds", _TEXTS[f"culvert_clock_{name}"], value=amount)
    for name, amount in sorted(facts.gauges.items()):
        yield GaugeMetricFamily(f"culvert_relay_{name}", "Of all workers together.", value=amount)


_TEXTS = {
    "culvert_clock_ahead": "By how much this machine's clock is ahead of the centre's; negative: behind.",
    "culvert_clock_uncertainty": "How wrong that measurement can be: half the round trip.",
    "culvert_workers": "Worker processes that serve.",
    "culvert_active_revision": "The revision that certificates, listeners and rules follow.",
    "culvert_centre_connected": "1 while the agent has a session with the centre.",
}


@lru_cache(maxsize=4096)
def _labels(
    direction: Direction,
    source: str,
    source_identity: str,
    destination: str,
    destination_identity: str,
    security: Security,
    flags: str,
) -> tuple[str, ...]:
    """The same for all connections of two workloads, and asked for each."""
    return (
        "source" if direction is Direction.OUTBOUND else "destination",
        *_party(source, source_identity),
        *_party(destination, destination_identity),
        "unknown",
        "tcp",
        _SECURITY[security],
        flags,
    )


def _party(workload: str, identity: str) -> tuple[str, str, str]:
    namespace, _, name = workload.partition("/")
    return name or "unknown", namespace or "unknown", identity or "unknown"
