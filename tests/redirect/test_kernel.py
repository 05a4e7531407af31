import subprocess
import sys
import threading
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from redirect.counts import Counts
from redirect.desired import Capture, Desired, Recognise
from redirect.kernel import Kernel
from redirect.netlink import CaptureError
from tests.redirect.conftest import Wire
from tests.redirect.desires import desired as desires
from tests.redirect.traffic import REFUSED, Server, ip, nft, reached

WEB = Capture("shop/web", Recognise(uid=1001), 15101, (("10.0.0.1", 80),), shares_address=True)
DB = Capture("shop/db", Recognise(uid=1002), 15102, (("fd00::2", 5432),))
DESIRED = Desired((WEB, DB), frozenset({("10.0.0.1", 80), ("fd00::2", 5432)}), agent_uids=(0, 990))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=desires())
def test_what_is_applied_is_what_is_held(kernel: Kernel, wanted: Desired) -> None:
    kernel.apply(wanted, afresh=True)
    assert kernel.differences(wanted) == []


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=desires(), second=desires())
def test_changes_of_the_mesh_arrive_the_same(kernel: Kernel, first: Desired, second: Desired) -> None:
    kernel.apply(first)
    other = replace(first, mesh=second.mesh)
    kernel.apply(other)
    assert kernel.differences(other) == []


def test_no_table_at_first_and_after_removal(kernel: Kernel) -> None:
    assert kernel.held() is None
    assert kernel.counters().workloads == {}
    kernel.apply(DESIRED)
    assert kernel.held() is not None
    kernel.remove()
    assert kernel.held() is None
    kernel.remove()


def test_removal_leaves_others_as_they_were(netns: str, kernel: Kernel) -> None:
    nft(netns, "table ip culvert { chain c { type nat hook output priority 0; tcp dport 1 redirect to :2; }; }")
    nft(netns, "table inet other { set s { type inet_service; elements = { 5 }; }; }")
    ip(netns, "rule", "add", "fwmark", "7", "lookup", "49175", "priority", "48")
    ip(netns, "route", "add", "local", "192.0.2.0/24", "dev", "lo", "table", "49175")

    def everything() -> tuple[str, ...]:
        tables = [ip(netns, f"-{v}", "route", "show", "table", "all") for v in (4, 6)]
        return nft(netns, "list", "ruleset"), ip(netns, "-4", "rule"), ip(netns, "-6", "rule"), *tables

    before = everything()
    kernel.apply(DESIRED)
    assert everything() != before
    kernel.apply(DESIRED, afresh=True)
    kernel.remove()
    assert everything() == before


def test_the_listing_reads_well(netns: str, kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    listing = nft(netns, "list", "ruleset")
    for line in (
        'comment "Culvert\'s; with no agent running, `nft delete table inet culvert` removes it"',
        "elements = { 1001 : goto from/shop/web, 1002 : goto from/shop/db }",
        "elements = { 10.0.0.1 . 80 }",
        "elements = { fd00::2 . 5432 }",
        "elements = { 0, 990 }",
        'ip daddr . tcp dport @mesh4 counter packets 0 bytes 0 redirect to :15101 comment "captured"',
        'meta mark & 0xffff000f == 0xc0170001 meta skuid @agents accept comment "the agent\'s own"',
    ):
        assert line in listing


def test_without_an_owner_the_rescue_line_works(netns: str, kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    nft(netns, "delete table inet culvert")
    assert kernel.held() is None


def test_tampering_is_named(netns: str, kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    nft(netns, "flush chain inet culvert guard")
    nft(netns, "add rule inet culvert out tcp dport 9 ct mark 8 log prefix x drop")
    nft(netns, "add element inet culvert never { 80 }")
    nft(netns, "delete element inet culvert mesh6 { fd00::2 . 5432 }")
    nft(netns, "add chain inet culvert extra")
    ip(netns, "rule", "del", "priority", "49")
    differences = kernel.differences(DESIRED)
    assert differences[:3] == [
        "set mesh6 lacks fd00::2 . 5432",
        "set never should not have 80",
        "chain out has a rule that is not ours, rule 8: " + differences[2].partition("rule 8: ")[2],
    ]
    assert differences[3].startswith("chain guard lacks rule 1: ct direction original tcp dport @kept-ports goto kept")
    assert differences[5:] == ["chain extra is not ours", "the IPv4 routing rule for mark 0xc0170002 is missing"]
    kernel.apply(DESIRED, afresh=True)
    assert kernel.differences(DESIRED) == []


def test_a_change_of_the_mesh_after_a_flush_brings_the_table_back(netns: str, kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    nft(netns, "flush ruleset")
    other = replace(DESIRED, mesh=DESIRED.mesh | {("10.0.0.9", 9)})
    kernel.apply(other)
    assert kernel.differences(other) == []


def test_a_table_of_another_run_is_replaced(netns: str, kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    kernel.close()
    later = Kernel(netns)
    try:
        later.apply(replace(DESIRED, captures=(DB,)))
        assert later.differences(replace(DESIRED, captures=(DB,))) == []
        assert nft(netns, "list", "tables") == "table inet culvert\n"
        later.remove()
        assert "49175" not in ip(netns, "rule")
    finally:
        later.close()


def test_a_hundred_thousand_addresses(kernel: Kernel) -> None:
    mesh = frozenset((f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}", 80) for n in range(70_000))
    mesh |= {(f"fd00::{n:x}", 80) for n in range(1, 30_001)}
    kernel.apply(replace(DESIRED, mesh=mesh))
    assert kernel.differences(replace(DESIRED, mesh=mesh)) == []
    other = (mesh | {("192.0.2.1", 1)}) - {("10.0.0.7", 80)}
    kernel.apply(replace(DESIRED, mesh=other))
    assert kernel.differences(replace(DESIRED, mesh=other)) == []


def test_counters_count_connections_and_outlive_replacement(wire: Wire, kernel: Kernel) -> None:
    desired = replace(DESIRED, mesh=frozenset({("10.77.0.9", 80), ("fd77::9", 80)}))
    kernel.apply(desired)
    with Server(wire.far, "far", "10.77.0.9", 81):
        for _ in range(3):
            assert reached(wire.node, "10.77.0.9", 81, uid=1001) == "far"
    assert reached(wire.node, "10.77.0.9", 80, uid=1001) == REFUSED
    assert reached(wire.node, "fd77::9", 80, uid=1001) == REFUSED
    expected = {"shop/web": Counts(captured=2, bypassed=3), "shop/db": Counts()}
    assert kernel.counters().workloads == expected
    kernel.apply(replace(desired, captures=(replace(WEB, port=15109), DB), capture_all=True))
    assert kernel.counters().workloads == expected
    kernel.apply(desired)
    assert kernel.counters().workloads == expected
    assert reached(wire.node, "fd77::9", 80, uid=1001) == REFUSED
    assert kernel.counters().workloads["shop/web"] == Counts(captured=3, bypassed=3)


def test_without_privilege_the_error_says_what_is_missing() -> None:
    code = (
        "import os\n"
        "from redirect.kernel import Kernel\n"
        "from redirect.desired import Desired\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try: Kernel().apply(Desired())\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    # In a network namespace of its own in any case, were the test to fail.
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", code], capture_output=True, text=True)
    if done.stderr.startswith("unshare"):
        pytest.skip(f"unshare -n: {done.stderr}")
    assert done.stdout == (
        "CaptureError the kernel refused a look at the tables: Operation not permitted; "
        "changing capture needs CAP_NET_ADMIN over this network namespace: run as root\n"
    )


def test_captures_that_contradict_each_other_change_nothing(kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    with pytest.raises(ValueError, match="shop/web and shop/db are both recognised by 1001"):
        kernel.apply(replace(DESIRED, captures=(WEB, replace(DB, recognise=Recognise(uid=1001)))))
    assert kernel.differences(DESIRED) == []


def test_a_refused_transaction_changes_nothing(netns: str, kernel: Kernel) -> None:
    kernel.apply(DESIRED)
    # The kernel knows no chain of such a name.
    long = replace(WEB, workload="shop/" + 300 * "n")
    with pytest.raises(CaptureError, match=r"refused chain from/shop/n*: .*out of range"):
        kernel.apply(replace(DESIRED, captures=(long,)))
    assert kernel.differences(DESIRED) == []


def test_callers_in_several_threads(kernel: Kernel) -> None:
    errors: list[BaseException] = []

    def run(number: int) -> None:
        try:
            for port in range(10):
                kernel.apply(replace(DESIRED, mesh=frozenset({("10.0.0.1", number * 100 + port + 1)})), afresh=True)
                kernel.counters()
                kernel.held()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
