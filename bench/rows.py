"""The rows people look at: a measurement, one of its values, and how to show it."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """`key` is its name in the line of `quick`, if it has a place there."""

    title: str
    measure: str
    value: str
    digits: int = 0
    key: str = ""


SPEED = (
    Row("requests/s, 1 connection", "wrk1", "rps", key="rps_c1"),
    Row("requests/s, 16 connections", "wrk16", "rps", key="rps_c16"),
    Row("requests/s, 64 connections", "wrk64", "rps", key="rps_c64"),
    Row("p50, 1 connection, µs", "wrk1", "p50", key="p50_c1"),
    Row("p99, 1 connection, µs", "wrk1", "p99"),
    Row("p50, 16 connections, µs", "wrk16", "p50"),
    Row("p99, 16 connections, µs", "wrk16", "p99", key="p99_c16"),
    Row("p99, 64 connections, µs", "wrk64", "p99"),
    Row("new connections/s", "ab", "cps", key="cps"),
    Row("Gbit/s, 1 flow", "iperf1", "gbps", 2, key="gbps_1"),
    Row("Gbit/s, 8 flows", "iperf8", "gbps", 2, key="gbps_8"),
)

COST = (
    Row("CPU s per GB, 1 flow", "iperf1", "cpu_gb", 2, key="cpu_per_gb"),
    Row("CPU s per GB, 8 flows", "iperf8", "cpu_gb", 2),
    Row("CPU s per 10,000 requests, 16 connections", "wrk16", "cpu_10k", 2, key="cpu_per_10k_req"),
    Row("CPU s per 10,000 new connections", "ab", "cpu_10k", 1),
    Row("MiB before the first connection", "idle1000", "pss_fresh"),
    Row("MiB with 1,000 idle connections", "idle1000", "pss", key="rss_1k_idle"),
    Row("KiB each, of 1,000", "idle1000", "kib_each", 1),
    Row("MiB with 10,000 idle connections", "idle10000", "pss"),
    Row("KiB each, of 10,000", "idle10000", "kib_each", 1),
    Row("CPU % while 1,000 are idle", "idle1000", "cpu_percent", 2),
)

STEADY_CONNECTIONS = (1, 4, 16, 64)
STEADY = tuple(
    Row(f"{title}, {count} connection{'s' * (count > 1)}, µs", f"steady{count}", value)
    for count in STEADY_CONNECTIONS
    for title, value in (("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("p99.9", "p999"))
)
STEADY_COST = tuple(
    Row(f"CPU s per 1,000 requests, {count} connection{'s' * (count > 1)}", f"steady{count}", "cpu_1k", 3)
    for count in STEADY_CONNECTIONS
)

SCALE = (
    Row("requests/s, 16 connections", "wrk16", "rps"),
    Row("p99, 16 connections, µs", "wrk16", "p99"),
    Row("new connections/s", "ab", "cps"),
    Row("Gbit/s, 1 flow", "iperf1", "gbps", 2),
    Row("MiB with 1,000 idle connections", "idle1000", "pss"),
)

QUICK = tuple(row for row in (*SPEED, *COST) if row.key)
