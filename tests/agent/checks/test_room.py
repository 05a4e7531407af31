"""Whether there is room."""

import pytest

from agent.checks import Finding, room

OURS = [range(15008, 15009), range(15100, 16000)]


@pytest.mark.parametrize(
    ("finding", "state", "word"),
    [
        (room.conntrack(None, None, 50), "ok", "not in use yet"),
        (room.conntrack(100, 262_144, 50), "ok", "100 of 262,144"),
        (room.conntrack(750, 1000, 50), "warn", "750 of 1,000"),
        (room.conntrack(0, 1000, 800), "warn", "capture tracks all of them"),
        (room.conntrack(960, 1000, 0), "fail", "dropped"),
        (room.descriptors(2**20, 10, 2, (1000, 2**60)), "ok", "for each of 2 workers"),
        (room.descriptors(4096, 10, 2, (1000, 2**60)), "warn", "1,920 connections"),
        (room.descriptors(1024, 300, 2, (1000, 2**60)), "fail", "300 workloads take 2,656 alone"),
        (room.descriptors(2**20, 1, 1, (999, 1000)), "fail", "the machine uses 999 of 1,000"),
        (room.ephemeral(range(32768, 61000), [], OURS, 10), "ok", "28,232"),
        (room.ephemeral(range(32768, 33768), [], OURS, 10), "fail", "only 1,000"),
        (room.ephemeral(range(32768, 61000), [], OURS, 25_000), "warn", "25,000 TCP sockets"),
        (room.ephemeral(range(1024, 65536), [], OURS, 10), "warn", "a connection may take one first"),
        (room.ephemeral(range(1024, 65536), [range(15000, 16000)], OURS, 10), "ok", "64,512"),
        (room.listening({}), "ok", "nobody"),
        (room.listening({15008: "nginx, pid 7", 15006: ""}), "fail", "15006, 15008 (nginx, pid 7)"),
        (room.disk("/var/lib/culvert", True, 2**33, 10**6), "ok", "8,192 MiB"),
        (room.disk("/var/lib/culvert", True, 2**33, None), "ok", "8,192 MiB"),
        (room.disk("/var/lib/culvert", False, 2**33, 10**6), "fail", "read-only"),
        (room.disk("/var/lib/culvert", True, 2**20, 10**6), "fail", "only 1 MiB"),
        (room.disk("/var/lib/culvert", True, 2**33, 3), "fail", "only 3 inodes"),
    ],
)
def test_each_state_is_told(finding: Finding, state: str, word: str) -> None:
    assert finding.state == state
    assert word in finding.text
    assert finding.remedy or state == "ok"


def test_the_remedy_for_overlapping_ports_names_those_that_are_free_to_be_taken() -> None:
    finding = room.ephemeral(range(1024, 65536), [range(15008, 15009)], OURS, 10)
    assert finding.remedy == "sysctl net.ipv4.ip_local_reserved_ports=15100-15999"
