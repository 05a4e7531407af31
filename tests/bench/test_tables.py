import json

import msgspec
import pytest

from bench import plans
from bench.rows import COST, QUICK, SPEED
from bench.samples import Record, Sample
from bench.tables import BEGIN, END, document, quick_line, section

KEYS = [
    "rps_c1",
    "rps_c16",
    "rps_c64",
    "p50_c1",
    "p99_c16",
    "cps",
    "gbps_1",
    "gbps_8",
    "cpu_per_gb",
    "cpu_per_10k_req",
    "rss_1k_idle",
]


def record() -> Record:
    """Culvert is at twice of everything that Envoy is."""
    found = Record({"cores": "2"}, "2026-01-02 03:04", {"envoy-hbone": "1.40", "culvert": "this tree"})
    for peer, level in (("envoy-hbone", 10.0), ("culvert", 20.0)):
        rows = (*SPEED, *COST)
        for measure in dict.fromkeys(row.measure for row in rows):
            values = {row.value: level for row in rows if row.measure == measure}
            found.samples.append(Sample(peer, 1, measure, 0, values))
    return found


def test_quick_has_exactly_these_keys() -> None:
    line = quick_line(record())
    assert "\n" not in line
    assert json.loads(line) == dict.fromkeys(KEYS, 2.0)


def test_quick_says_null_for_what_is_missing() -> None:
    assert json.loads(quick_line(Record({}, ""))) == dict.fromkeys(KEYS)


def test_quick_measures_every_key() -> None:
    plan = plans.quick()
    assert {row.measure for row in QUICK} <= {measure.name for measure in (*plan.memory, *plan.load)}


def test_section_shows_ratios_cells_and_troubles() -> None:
    found = record()
    found.skipped["stunnel"] = "not installed: stunnel4 (apt)"
    found.faults.append("haproxy, start 0: it fell\nover")
    found.samples.append(Sample("culvert", 1, "ab", 1, {"cps": 1.0, "bad": 3.0}))
    text = section(found)
    assert "| requests/s, 1 connection | 2.00 | 2.00 to 2.00 | 1 |" in text
    assert "| Gbit/s, 1 flow | 10.00 | 20.00 |" in text
    assert "- stunnel was skipped: not installed: stunnel4 (apt)" in text
    assert "- failed: haproxy, start 0: it fell over" in text
    assert "- not counted: culvert, 1 workers, ab, turn 1: 3 wrong or lost" in text


def test_section_shows_latency_added_over_direct() -> None:
    found = Record({}, "", {"direct": "-", "culvert": "this tree"})
    for peer, p50 in (("direct", 100.0), ("culvert", 130.0)):
        found.samples.append(Sample(peer, 1, "steady16", 0, {"p50": p50, "cpu_1k": 0.2}))
    text = section(found)
    assert "| p50, 16 connections, µs | 30 |" in text
    assert "| CPU s per 1,000 requests, 16 connections | 0.200 |" in text


def test_document_keeps_what_is_around_the_markers() -> None:
    text = f"# Title\n\n{BEGIN}\nold\n{END}\n\nThe end.\n"
    once = document(text, "new")
    assert once == f"# Title\n\n{BEGIN}\n\nnew\n\n{END}\n\nThe end.\n"
    assert document(once, "new") == once


@pytest.mark.parametrize("text", ["", f"{BEGIN}\n", f"{END}\n{BEGIN}\n"])
def test_document_without_a_place(text: str) -> None:
    with pytest.raises(ValueError, match="no place for results"):
        document(text, "new")


def test_record_survives_its_file() -> None:
    found = record()
    assert msgspec.json.decode(plans.keep(found), type=Record) == found
