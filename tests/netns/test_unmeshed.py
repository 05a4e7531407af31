"""The truth about what the mesh does not carry: shown, and blocked where that is asked for."""

import socket
import urllib.request

import pytest

from agent.lab import programs
from agent.lab.place import Place
from tests.netns.test_exclusions import counted, said
from tests.netns.town import Town

SEND = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
for _ in range(3):
    s.sendto(b"datagram", (sys.argv[1], int(sys.argv[2])))
"""


async def sent(place: Place, address: str, port: int) -> bool:
    """Whether three datagrams of a program there could be sent."""
    ran = await programs.run(place, [programs.SYSTEM_PYTHON, "-c", SEND, address, str(port)])
    assert ran.ok or "PermissionError" in ran.errors, ran.errors
    return ran.ok


@pytest.mark.parametrize("name", ["web", "cart", "front"])
async def test_shown_and_counted_for_whose_it_is(town: Town, name: str) -> None:
    place, others = town[name].place, {"web", "cart", "front"} - {name}
    before = {n: (await counted(town, n, "unmeshed"), await counted(town, n, "dns")) for n in (name, *others)}
    for address in (town.far.address, town.far.address6):
        assert await sent(place, address, 8125)
    assert await sent(place, town.far.address, 53)
    assert await counted(town, name, "unmeshed") == before[name][0] + 6
    assert await counted(town, name, "dns") == before[name][1] + 3
    for other in others:
        assert (await counted(town, other, "unmeshed"), await counted(town, other, "dns")) == before[other]
    table = await town.mesh.on(town.node("one"), "capture", "status")
    assert "UNMESHED" in table
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize("name", ["web", "cart", "front"])
async def test_blocked_when_asked_for(town: Town, name: str) -> None:
    place = town[name].place
    with town.far.namespace.socket(kind=socket.SOCK_DGRAM) as far:
        far.bind((town.far.address, 8125))
        far.settimeout(0.5)
        assert await sent(place, town.far.address, 8125)
        assert [far.recv(100) for _ in range(3)] == [b"datagram"] * 3
        async with said(town, name, "capture: {unmeshed: block}"):
            assert not await sent(place, town.far.address, 8125)
            assert await sent(place, town.far.address, 53)
            assert await counted(town, name, "blocked") >= 1
            assert "blocked" in await town.mesh.on(town.node("one"), "capture", "status")
        async with said(town, name, "capture: {unmeshed: block-all}"):
            assert not await sent(place, town.far.address, 53)
        async with said(town, name, "capture: {unmeshed: block-all, out: {skip: {ports: [8125]}}}"):
            assert await sent(place, town.far.address, 8125)
            assert not await sent(place, town.far.address, 8126)
        assert [far.recv(100) for _ in range(3)] == [b"datagram"] * 3
        with pytest.raises(TimeoutError):
            far.recv(100)
    assert await sent(place, town.far.address, 8125)


async def test_the_mesh_says_it_for_all_but_those_who_say_otherwise(town: Town) -> None:
    mesh = "kind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: demo.example, capture: {unmeshed: block}}\n"
    async with town.mode(), said(town, "cart", "capture: {unmeshed: allow}"):
        await town.mesh.apply(mesh)
        passed = {name: await sent(town[name].place, town.far.address, 8125) for name in ("web", "cart", "front")}
        assert passed == {"web": False, "cart": True, "front": False}


async def test_the_metric(town: Town) -> None:
    def page() -> str:
        with urllib.request.urlopen("http://127.0.0.1:15020/metrics", timeout=5) as answer:
            return str(answer.read().decode())

    assert await sent(town["web"].place, town.far.address, 8125)
    text = town.one.namespace.run(page)
    (line,) = (x for x in text.splitlines() if 'fate="allowed",workload="shop/web"' in x)
    assert line.startswith("culvert_unmeshed_packets_total")
    assert float(line.split()[-1]) == await counted(town, "web", "unmeshed")
