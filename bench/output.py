"""What the load generators print -> numbers. Pure; OutputError when a program printed something else."""

import json
import re
from collections.abc import Mapping

Values = dict[str, float]

IN_FLIGHT = 256 * 2**20
"""Bytes that iperf3 may have sent and not received when it stops. Eight flows through Envoy have had 77 million on a
busy machine; that no byte is lost is shown by transfers that are compared, not by this."""

_UNIT = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 60e6}


class OutputError(Exception):
    """The program did not do its work; the message has its words."""


def read_wrk(text: str) -> Values:
    """Requests a second, latencies in microseconds, and `bad`: answers that were not 2xx, and socket errors."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    requests = re.search(r"(\d+) requests in", text)
    worst = re.search(r"Latency\s+\S+\s+\S+\s+(\S+)", text)
    if not rate or not requests or not worst:
        raise OutputError(f"wrk printed no result: {_end(text)}")
    values = {"rps": float(rate[1]), "requests": float(requests[1]), "max": _microseconds(worst[1])}
    for quantile in ("50", "90", "99"):
        found = re.search(rf"^\s+{quantile}%\s+(\S+)", text, re.M)
        if not found:
            raise OutputError(f"wrk printed no latencies: {_end(text)}")
        values[f"p{quantile}"] = _microseconds(found[1])
    status = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    values["bad"] = float(sum(int(n) for m in (status, errors) if m for n in m.groups()))
    return values


def read_ab(text: str, asked: int) -> Values:
    """New connections a second, the quantiles of one in milliseconds, `bad`: of those asked for, all that failed."""
    rate = re.search(r"Requests per second:\s+([\d.]+)", text)
    done = re.search(r"Complete requests:\s+(\d+)", text)
    failed = re.search(r"Failed requests:\s+(\d+)", text)
    if not rate or not done or not failed:
        raise OutputError(f"ab printed no result: {_end(text)}")
    status = re.search(r"Non-2xx responses:\s+(\d+)", text)
    values = {
        "cps": float(rate[1]),
        "requests": float(done[1]),
        "bad": float(asked - int(done[1]) + int(failed[1]) + (int(status[1]) if status else 0)),
    }
    for quantile in ("50", "99"):
        if found := re.search(rf"^\s+{quantile}%\s+(\d+)", text, re.M):
            values[f"p{quantile}_ms"] = float(found[1])
    return values


def read_iperf(text: str) -> Values:
    """Gbit/s and bytes as received. `bad` is the bytes that were sent, did not arrive and cannot all have been under
    way when the clock ran out; a byte received that nobody sent counts too."""
    try:
        report = json.loads(text)
    except ValueError:
        raise OutputError(f"iperf3 printed no JSON: {_end(text)}") from None
    if "error" in report or "end" not in report:
        raise OutputError(f"iperf3: {report.get('error', 'no result')}")
    sent, received = (report["end"][key] for key in ("sum_sent", "sum_received"))
    missing = sent["bytes"] - received["bytes"]
    return {
        "gbps": received["bits_per_second"] / 1e9,
        "bytes": float(received["bytes"]),
        "bad": float(missing if missing > IN_FLIGHT else max(0, -missing)),
    }


def read_numbers(text: str) -> Values:
    """One line of JSON with numbers, as our own programs print."""
    try:
        found = json.loads(text)
        if not isinstance(found, Mapping):
            raise ValueError
        return {str(key): float(value) for key, value in found.items()}
    except (ValueError, TypeError):
        raise OutputError(f"no numbers in: {_end(text)}") from None


def _microseconds(text: str) -> float:
    found = re.fullmatch(r"([\d.]+)(us|ms|s|m)", text)
    if not found:
        raise OutputError(f"wrk printed {text!r} for a time")
    return float(found[1]) * _UNIT[found[2]]


def _end(text: str) -> str:
    return text.strip()[-200:] or "nothing"
