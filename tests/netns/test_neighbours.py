"""Two machines that have been lived in: the rules of a container engine and of a firewall stand before we come."""

import json

import pytest

from tests.netns.node import Pair, pair, soon
from tests.redirect import strangers


@pytest.mark.parametrize(
    "owners", [("docker-nft", "ufw-legacy"), ("docker-legacy", "firewalld")], ids=["ufw", "firewalld"]
)
async def test_the_mesh_carries_and_theirs_stays(owners: tuple[str, str]) -> None:
    async with pair() as two:
        names = [node.machine.namespace.name for node in (two.one, two.two)]
        for name in names:
            for owner in owners:
                strangers.settle(name, owner, published=8080)
        for node in (two.one, two.two):
            # A firewall that comes later does not know what was there before it.
            await node.process.end()
            await two.mesh.start_agent(node)
        before = [strangers.theirs(name, owner) for name in names for owner in owners]
        assert (await two.talk()).startswith("220 api greets")
        await two.enrol()

        async def talks() -> bool:
            return (await two.talk()).startswith("220 api greets")

        assert await soon(talks, 10)
        assert (await two.captured(two.one))["shop/web"] > 0
        (row,) = [c for c in await connections(two) if c.get("security") == "mtls"][-1:]
        assert row["source"]["workload"] == "shop/web"
        found = {f["name"]: f for f in (await two.ask(two.two, "check"))["findings"]}
        assert found["neighbours"]["state"] == "ok"
        assert "Docker" in found["neighbours"]["text"] or "iptables-legacy nat" in found["neighbours"]["text"]
        await two.mesh.on(two.two, "capture", "off")
        await two.mesh.on(two.one, "agent", "leave")
        assert [strangers.theirs(name, owner) for name in names for owner in owners] == before


async def connections(two: Pair) -> list[dict[str, str]]:
    said = json.loads(await two.mesh.on(two.two, "connections", "-o", "json"))
    return [*said["live"], *said["closed"]]


async def test_a_conflict_is_named_when_the_agent_starts() -> None:
    async with pair() as two:
        name = two.one.machine.namespace.name
        strangers.run(name, "nft", "add table inet vpn { chain o { type filter hook output priority 0; }; }")
        strangers.run(name, "nft", "add rule inet vpn o meta mark set 0x1")
        strangers.run(name, "ip", "rule", "add", "fwmark", "0x1/0x1", "lookup", "100", "priority", "700")
        await two.one.process.end()
        await two.mesh.start_agent(two.one)

        def told() -> list[dict[str, str]]:
            log = (json.loads(line) for line in two.one.process.output().splitlines() if line.startswith("{"))
            return [e for e in log if e["event"] == "precondition-failed" and e["check"] == "neighbours"]

        async def logged() -> bool:
            return bool(told())

        assert await soon(logged, 20)
        assert "ip rule 700: fwmark 0x1/0x1 lookup 100 takes packets with our marks" in told()[0]["cause"]
        assert "table inet vpn, chain o: meta mark set 0x1 (mark 0x1/0xffffffff)" in told()[0]["cause"]
        ran = await two.mesh.try_on(two.one, "check")
        assert ran.status == 1
        assert "✗ neighbours" in ran.output.decode()
        assert max(map(len, ran.output.decode().splitlines())) <= 80
        # Other numbers settle it.
        two.one.settings |= {"CULVERT_AGENT_MARKS_AGENT": "0xC0170004", "CULVERT_AGENT_MARKS_SPOOF": "0xC0170008"}
        strangers.run(name, "nft", "delete table inet vpn")
        await two.one.process.end()
        await two.mesh.start_agent(two.one)
        found = {f["name"]: f for f in (await two.ask(two.one, "check"))["findings"]}
        assert found["neighbours"]["state"] == "ok"
        await two.enrol()
        assert (await two.talk()).startswith("220 api greets")
