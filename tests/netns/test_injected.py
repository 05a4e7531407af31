"""Faults of a machine, made for one agent alone: each is named with its remedy by `culvert check` and in the log of the
agent that starts with it, and what it does not touch works. ipv6.disable=1 would take a boot; the sysctl is nearest."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.lab.process import eventually
from tests.netns.node import Pair, pair, soon
from tests.netns.test_check import findings, sysctl


@dataclass(frozen=True)
class Fault:
    """`within` and `sysctls` make it; `check` finds it, with these words."""

    check: str
    state: str
    cause: str
    remedy: str = ""
    within: tuple[str, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()


def mounts(script: str) -> tuple[str, ...]:
    """To run under mounts of its own, which this script makes."""
    return ("unshare", "--mount", "--propagation=private", "sh", "-c", f'{script} && exec "$@"', "sh")


def without(capability: str) -> tuple[str, ...]:
    """To run without a capability, which root has otherwise."""
    return ("setpriv", f"--bounding-set=-{capability}")


FAULTS = {
    "too few descriptors": Fault(
        "descriptors", "fail", "200, and 1 workloads take 260 alone", "LimitNOFILE=", ("prlimit", "--nofile=200:200")
    ),
    "hardly a port to dial from": Fault(
        "ports to dial",
        "fail",
        "only 10 (40000-40009)",
        "sysctl net.ipv4.ip_local_port_range=",
        sysctls=(("ipv4/ip_local_port_range", "40000 40009"),),
    ),
    "no sysctl can be set": Fault(
        "mounts",
        "ok",
        "/proc/sys read-only, which is enough",
        within=mounts("mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys"),
    ),
    "no IPv6": Fault(
        "IPv6",
        "warn",
        "only IPv4 is captured",
        "sysctl net.ipv6.conf.lo.disable_ipv6=0",
        sysctls=(("ipv6/conf/all/disable_ipv6", "1"),),
    ),
    "no way into other namespaces": Fault(
        "rights", "warn", "lacks CAP_SYS_ADMIN (to enter", "CapabilityBoundingSet=", without("sys_admin")
    ),
    "workers keep a bounding set": Fault(
        "rights", "fail", "lacks CAP_SETPCAP (workers give", "CapabilityBoundingSet=", without("setpcap")
    ),
}


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair() as made:
        await made.enrol()
        assert made.one.process
        await made.one.process.end()
        yield made


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_it_is_named_and_the_rest_works(two: Pair, fault: Fault) -> None:
    await _named(two, fault)


async def test_a_table_of_connections_that_is_nearly_full(two: Pair) -> None:
    """What it holds at most is set for the whole machine, so not by us: the agent is shown another count instead."""
    count = int(int(Path("/proc/sys/net/netfilter/nf_conntrack_max").read_text()) * 0.99)
    shown = two.one.directory / "count"
    shown.write_text(f"{count}\n")
    within = mounts(f"mount --bind {shown} /proc/sys/net/netfilter/nf_conntrack_count")
    remedy = "sysctl net.netfilter.nf_conntrack_max="
    await _named(two, Fault("conntrack", "fail", f"{count:,} of ", remedy, within))


async def _named(two: Pair, fault: Fault) -> None:
    two.one.within = fault.within
    for name, value in fault.sysctls:
        sysctl(two.one, name, value)
    await two.mesh.start_agent(two.one)
    assert await soon(lambda: _talks(two), 20)  # it listens before its workers carry
    found = (await findings(two, two.one))[fault.check]
    assert found["state"] == fault.state, found
    assert fault.cause in found["text"]
    assert fault.remedy in found.get("remedy", "")
    if fault.state != "ok":
        assert await eventually(lambda: fault.cause in _logged(two, fault.check)), _logged(two, fault.check)
        assert fault.remedy in _logged(two, fault.check)


async def _talks(two: Pair) -> bool:
    return (await two.talk()).startswith("220 api greets")


def _logged(two: Pair, check: str) -> str:
    """What the agent's log says of a check."""
    assert two.one.process
    lines = [line for line in two.one.process.output().splitlines() if line.startswith('{"check"')]
    return "\n".join(
        f"{said['cause']}\n{said['remedy']}" for line in lines if (said := json.loads(line))["check"] == check
    )


@pytest.mark.parametrize(
    ("capability", "text"),
    [("net_raw", "CAP_NET_RAW (marks"), ("net_admin", "CAP_NET_ADMIN (rules"), ("setuid", "CAP_SETUID (workers")],
)
async def test_who_cannot_carry_anything_does_not_start_and_says_why(two: Pair, capability: str, text: str) -> None:
    two.one.within = without(capability)
    found = (await findings(two, two.one))["rights"]
    assert found["state"] == "fail"
    assert found["text"].startswith(f"root, and lacks {text}")
    ran = await two.mesh.try_on(two.one, "agent", "run")
    assert ran.status == 1
    assert f"{found['text']}; {found['remedy']}" in " ".join(ran.errors.split())
    assert await two.talk() == ""  # captured means held
