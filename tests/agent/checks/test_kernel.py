"""What kernel and mounts offer."""

import pytest

from agent.checks import Finding, kernel


def test_old_kernels_are_told() -> None:
    assert kernel.versions("6.1.0-40-amd64", (3, 11), "1.0").state == "ok"
    old = kernel.versions("5.10.0-8", (3, 11), "1.0")
    assert (old.state, old.remedy[:10]) == ("warn", "use Linux ")
    assert kernel.versions("strange", (3, 11), "1.0").state == "ok"


def test_the_trial_tells_a_kernel_without_cgroups_from_one_without_rules() -> None:
    assert kernel.trial([], []).state == "ok"
    assert kernel.trial(["socket cgroupv2"], []).state == "warn"
    failed = kernel.trial(["fib and cgroup", "more"], ["fib: `modprobe nft_fib_inet`"])
    assert (failed.state, failed.text) == ("fail", "fib: `modprobe nft_fib_inet`")
    assert kernel.no_trial("not root").state == "unknown"


def test_tables_that_end_with_the_agent_need_a_young_kernel() -> None:
    assert kernel.presence(True, "").state == "ok"
    assert "nft flush ruleset" in kernel.presence(False, "").text
    without = kernel.presence(False, "it needs Linux 5.12")
    assert (without.state, without.remedy) == ("warn", "use Linux 6.9 or later")
    assert "failMode open is not possible" in without.text


@pytest.mark.parametrize(
    ("finding", "state", "word"),
    [
        (kernel.ipv6(True, False, False), "ok", "on"),
        (kernel.ipv6(False, False, False), "warn", "ipv6.disable=1"),
        (kernel.ipv6(True, True, False), "warn", "ipv6.disable=1"),
        (kernel.ipv6(True, False, True), "warn", "loopback"),
        (kernel.mounts(True, False, True, []), "ok", "can be read"),
        (kernel.mounts(True, False, True, ["/proc"]), "ok", "/proc read-only, which is enough"),
        (kernel.mounts(False, True, True, []), "fail", "/proc cannot be read"),
        (kernel.mounts(False, True, False, []), "fail", "/proc and /sys cannot be read"),
        (kernel.mounts(True, True, True, []), "warn", "hidepid"),
        (kernel.cgroups("/sys/fs/cgroup", True), "ok", "/sys/fs/cgroup"),
        (kernel.cgroups(None, True), "warn", "not mounted"),
        (kernel.cgroups("/sys/fs/cgroup", False), "warn", "inotify"),
    ],
)
def test_each_state_is_told(finding: Finding, state: str, word: str) -> None:
    assert finding.state == state
    assert word in finding.text
    assert finding.remedy or state == "ok"
