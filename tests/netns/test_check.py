"""`culvert check` on a machine with and without faults, and an agent that starts with them."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agent.lab import programs
from agent.lab.mesh import WORKER_UID, CulvertError, Node
from agent.lab.place import Place
from tests.netns.node import Pair, pair


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


async def findings(two: Pair, node: Node) -> dict[str, dict[str, str]]:
    ran = await two.mesh.try_on(node, "check", "-o", "json")
    found = {f["name"]: f for f in json.loads(ran.output)["findings"]}
    assert ran.status == any(f["state"] == "fail" for f in found.values())
    return found


def sysctl(node: Node, name: str, value: str) -> None:
    node.machine.namespace.run(lambda: Path("/proc/sys/net", name).write_text(value))


async def test_a_sound_machine(two: Pair) -> None:
    found = await findings(two, two.one)
    doubtful = {"clock", "descriptors"}  # of the machine that the tests run on
    assert {n: f for n, f in found.items() if f["state"] != "ok" and n not in doubtful} == {}
    text = await two.mesh.try_on(two.one, "check")
    lines = text.output.decode().splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("✓ versions        Linux ")


async def test_a_running_agent_says_what_it_sees_and_works_all_the_same(two: Pair) -> None:
    await two.one.process.end()
    sysctl(two.one, "ipv4/ip_local_port_range", "15000 30000")
    sysctl(two.one, "ipv6/conf/lo/disable_ipv6", "1")
    await two.mesh.start_agent(two.one)
    found = await findings(two, two.one)
    assert found["IPv6"]["state"] == "warn"
    assert found["ports to dial"]["remedy"].startswith("sysctl net.ipv4.ip_local_reserved_ports=15006,15008,")
    await two.enrol()
    assert (await two.talk()).startswith("220 api greets")
    # The same was logged when it started.
    log = [json.loads(line) for line in two.one.process.output().splitlines() if line.startswith("{")]
    assert {e["check"] for e in log if e["event"] == "precondition-doubtful"} >= {"IPv6", "ports to dial"}


async def test_without_an_agent_the_command_looks_itself(two: Pair) -> None:
    await two.one.process.end()
    with two.one.machine.namespace.socket() as squatter:
        squatter.bind(("0.0.0.0", 15008))
        squatter.listen()
        ran = await two.mesh.try_on(two.one, "check")
    assert ran.status == 1
    said = ran.output.decode()
    assert "✗ ports to listen another program has 15008 (" in said
    assert "✓ mesh            one of demo.example" in said
    assert "no agent answers" in ran.errors
    assert max(map(len, said.splitlines())) <= 80


async def test_who_is_not_root_is_told(two: Pair) -> None:
    env = two.one.env
    ran = await programs.run(
        Place(two.one.machine.namespace, WORKER_UID),
        [programs.SYSTEM_PYTHON, "-m", "agent.cli", "check"],
        env={**env, "PYTHONPATH": env["PYTHONPATH"] + ":" + ":".join(_packages())},
    )
    if b"rights" not in ran.output:
        pytest.skip(f"another user cannot read this environment: {ran.errors}")
    assert ran.status == 1
    assert f"✗ rights          uid {WORKER_UID}, not root" in ran.output.decode()
    assert "? nft" in ran.output.decode()


def _packages() -> list[str]:
    import sys

    return [p for p in sys.path if p.endswith("site-packages")]


async def test_a_machine_without_room_on_disk(two: Pair) -> None:
    node = two.one
    await node.process.end()
    node.settings["CULVERT_AGENT_STATE_DIR"] = "/proc/culvert"
    found = await findings(two, node)
    assert found["disk"]["state"] == "fail"
    with pytest.raises(CulvertError):
        await two.mesh.on(node, "check")
