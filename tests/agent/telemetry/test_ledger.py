import json
from functools import partial

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.connections import Connection, Direction, Party, Security, Verdict
from agent.messages import Closed
from agent.telemetry.access_log import AccessLog
from agent.telemetry.ledger import KEEP, Ledger
from agent.telemetry.metrics import IDLE, LABELS, SERIES, Facts, TcpCounts, exposition
from agent.telemetry.sink import Sink

WEB = Party("shop/web", "spiffe://t/ns/shop/sa/web", "10.0.0.1:40000")
DB = Party("shop/db", "spiffe://t/ns/shop/sa/db", "10.0.0.2:5432")


def connection(number: int = 1, sent: int = 0, received: int = 0, **facts) -> Connection:
    given = {
        "id": f"1.{number}",
        "direction": Direction.OUTBOUND,
        "source": WEB,
        "destination": DB,
        "security": Security.MTLS,
        "opened": 1_800_000_000.0,
        "verdict": Verdict.ALLOWED,
        "sent": sent,
        "received": received,
    }
    return Connection(**(given | facts))


def samples(counts: TcpCounts, facts: Facts | None = None, now: float = 0.0) -> dict:
    """{(name, labels that are not the usual): value}"""
    found = {}
    for family in text_string_to_metric_families(exposition(counts, facts or Facts(), now).decode()):
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def value(found: dict, name: str, **labels: str) -> float:
    matching = [v for (n, ls), v in found.items() if n == name and labels.items() <= dict(ls).items()]
    assert len(matching) <= 1
    return matching[0] if matching else 0


def test_a_connection_is_counted_under_istios_names():
    counts = TcpCounts()
    counts.closed(connection(sent=10, received=20, carried=True), 1)
    found = samples(counts)
    _, labels = next(k for k in found if k[0] == "istio_tcp_connections_opened_total")
    assert set(dict(labels)) == set(LABELS)
    assert dict(labels) == {
        "reporter": "source",
        "source_workload": "web",
        "source_workload_namespace": "shop",
        "source_principal": "spiffe://t/ns/shop/sa/web",
        "destination_workload": "db",
        "destination_workload_namespace": "shop",
        "destination_principal": "spiffe://t/ns/shop/sa/db",
        "destination_service": "unknown",
        "request_protocol": "tcp",
        "connection_security_policy": "mutual_tls",
        "response_flags": "-",
    }
    assert value(found, "istio_tcp_connections_closed_total") == 1
    assert value(found, "istio_tcp_connections_failed_total") == 0
    assert value(found, "istio_tcp_sent_bytes_total") == 10
    assert value(found, "istio_tcp_received_bytes_total") == 20


def test_a_connection_that_policy_ended_was_opened_all_the_same():
    counts = TcpCounts()
    counts.live([connection(sent=5, carried=True)], 0)
    counts.closed(connection(sent=9, carried=True, verdict=Verdict.REFUSED), 1)
    found = samples(counts)
    assert value(found, "istio_tcp_connections_opened_total", response_flags="-") == 1
    assert value(found, "istio_tcp_sent_bytes_total", response_flags="-") == 9
    assert value(found, "istio_tcp_connections_failed_total", response_flags="DENY") == 1
    assert value(found, "istio_tcp_connections_closed_total") == 0


def test_what_was_refused_or_failed_is_not_closed():
    counts = TcpCounts()
    stranger = connection(
        direction=Direction.INBOUND,
        source=Party(address="1.2.3.4:5"),
        security=Security.PLAINTEXT,
        verdict=Verdict.REFUSED,
    )
    counts.closed(stranger, 0)
    counts.closed(connection(2, verdict=Verdict.FAILED), 0)
    found = samples(counts)
    assert value(found, "istio_tcp_connections_opened_total") == 0
    assert value(found, "istio_tcp_connections_closed_total") == 0
    assert (
        value(
            found,
            "istio_tcp_connections_failed_total",
            reporter="destination",
            source_workload="unknown",
            source_principal="unknown",
            connection_security_policy="none",
            response_flags="DENY",
        )
        == 1
    )
    assert value(found, "istio_tcp_connections_failed_total", response_flags="CONNECT") == 1


def test_live_connections_and_their_bytes_count_once():
    carried = partial(connection, carried=True)
    counts = TcpCounts()
    counts.live([carried(sent=100, received=1), carried(2, sent=5)], 1)
    counts.live([carried(sent=150, received=1)], 2)  # the worker of the second was slow
    counts.live([carried(sent=150, received=1), carried(2, sent=7)], 3)
    assert value(samples(counts, now=3), "istio_tcp_sent_bytes_total") == 157
    counts.closed(carried(sent=160, received=2), 4)
    counts.closed(carried(2, sent=7), 4)
    found = samples(counts, now=4)
    assert value(found, "istio_tcp_connections_opened_total") == 2
    assert value(found, "istio_tcp_connections_closed_total") == 2
    assert value(found, "istio_tcp_sent_bytes_total") == 167
    assert value(found, "istio_tcp_received_bytes_total") == 2


def test_idle_series_go_and_their_number_is_bounded():
    counts = TcpCounts()
    counts.closed(connection(), 0)
    assert counts.rows(IDLE - 1)
    assert not counts.rows(IDLE)
    for n in range(SERIES + 10):
        counts.closed(connection(n, source=Party(f"ns/w{n}")), n)
    names = {labels[1] for labels, _ in counts.rows(0)}
    assert len(names) == SERIES
    assert "w9" not in names
    assert "w10" in names


def test_facts_of_our_own():
    facts = Facts(
        expiry={"spiffe://t/ns/shop/sa/web": 1_800_000_000.0},
        captured={"shop/web": 4},
        bypassed={"shop/web": 7},
        passed={"shop/web": 2},
        held={"waited": 5, "refused": 6},
        asked=8,
        unnamed={"units": 10, "containers": 11},
        gauges={"connections": 3},
        restored=3,
        not_captured=0.25,
        log_dropped=2,
        worker_restarts=1,
        workers=1,
        revision=9,
        centre_connected=True,
    )
    found = samples(TcpCounts(), facts)
    assert found["culvert_certificate_expiry_timestamp_seconds", (("identity", "spiffe://t/ns/shop/sa/web"),)] == 1.8e9
    assert found["culvert_bypassed_connections_total", (("workload", "shop/web"),)] == 7
    assert found["culvert_captured_connections_total", (("workload", "shop/web"),)] == 4
    assert found["culvert_passed_connections_total", (("workload", "shop/web"),)] == 2
    assert found["culvert_passed_unnamed_connections_total", (("of", "units"),)] == 10
    assert found["culvert_passed_unnamed_connections_total", (("of", "containers"),)] == 11
    assert found["culvert_held_packets_total", (("fate", "waited"),)] == 5
    assert found["culvert_held_packets_total", (("fate", "refused"),)] == 6
    for name, amount in (
        ("culvert_tables_restored_total", 3),
        ("culvert_not_captured_seconds_total", 0.25),
        ("culvert_access_log_dropped_total", 2),
        ("culvert_asked_connections_total", 8),
        ("culvert_worker_restarts_total", 1),
        ("culvert_workers", 1),
        ("culvert_active_revision", 9),
        ("culvert_centre_connected", 1),
        ("culvert_relay_connections", 3),
    ):
        assert found[name, ()] == amount


@pytest.fixture
def log(tmp_path):
    sink = Sink(str(tmp_path / "access.log"))
    ledger = Ledger(AccessLog(sink), lambda: 0.0)

    def read() -> list[dict]:
        sink.close()
        return [json.loads(line) for line in (tmp_path / "access.log").read_text().splitlines()]

    return ledger, read


def test_one_line_for_each_closed_connection(log):
    ledger, read = log
    ledger.take(
        Closed([connection(1, 3, 4, duration=0.25, tunnel="t1", trace="ab", reason="", source_kept=False)], dropped=5)
    )
    ledger.take(Closed([connection(2, verdict=Verdict.FAILED, reason='no "way"\nÜ')]))
    first, second = read()
    assert first.pop("timestamp").endswith("Z")
    assert first == {
        "event": "connection",
        "id": "1.1",
        "trace": "ab",
        "direction": "outbound",
        "security": "mtls",
        "source_workload": "shop/web",
        "source_identity": "spiffe://t/ns/shop/sa/web",
        "source_address": "10.0.0.1:40000",
        "destination_workload": "shop/db",
        "destination_identity": "spiffe://t/ns/shop/sa/db",
        "destination_address": "10.0.0.2:5432",
        "sent": 3,
        "received": 4,
        "opened": 1_800_000_000.0,
        "duration": 0.25,
        "verdict": "allowed",
        "reason": "",
        "policy": "",
        "dry_run": "",
        "source_kept": False,
        "opaque": False,
        "tunnel": "t1",
    }
    assert (second["verdict"], second["reason"]) == ("failed", 'no "way"\nÜ')
    assert ledger.dropped == 5


def test_times_are_told_as_finely_as_they_mean_something(log):
    ledger, read = log
    ledger.take(Closed([connection(opened=1_800_000_000.123678, duration=0.00123456789)]))
    ledger.take(Closed([connection(2, opened=1_799_999_999.9996, duration=0.0000004)]))
    assert [(line["opened"], line["duration"]) for line in read()] == [
        (1_800_000_000.124, 0.001235),
        (1_800_000_000.0, 0.0),
    ]


def test_the_last_closed_ones_are_kept():
    ledger = Ledger(None, lambda: 0.0)
    ledger.take(Closed([connection(n) for n in range(KEEP + 5)]))
    assert [c.id for c in ledger.closed][:1] == ["1.5"]
    assert len(ledger.closed) == KEEP
