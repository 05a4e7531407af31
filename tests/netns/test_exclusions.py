"""What a setting leaves alone is left alone, and opens no door that a policy keeps shut."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place
from agent.lab.sniffer import sniff
from tests.netns import traffic
from tests.netns.town import STRANGER, Town
from tests.promises import not_even_once

HELLO = b"220 hello\r\n"
MARKER = b"a-marker-that-is-nobody-elses-"


@asynccontextmanager
async def said(town: Town, name: str, settings: str) -> AsyncIterator[None]:
    """A resident whose spec says `settings` besides, for the time of the block."""
    plain = town[name].yaml()
    await town.mesh.apply(plain.replace("spec: {", f"spec: {{{settings}, "))
    try:
        yield
    finally:
        with trio.CancelScope(shield=True):
            await town.mesh.apply(plain)


async def counted(town: Town, name: str, field: str) -> int:
    """What the kernel counted for a resident."""
    status = await town.mesh.ask(town.node(town[name]), "capture")
    (row,) = (r for r in status["rows"] if r["workload"] == town[name].workload)
    return int(row.get(field, 0))


async def exchange(town: Town, caller: str, server: str) -> bytes:
    """An exchange by a program of the caller's."""
    destination = town[server]
    ran = await programs.run(town[caller].place, programs.hear(destination.address, destination.port, "word"))
    if not ran.ok:
        print(f"the program of {caller} failed: {ran.errors}")
    return ran.output if ran.ok else b""


@pytest.mark.parametrize("caller", ["web", "cart", "front"])
@pytest.mark.parametrize("by", ["ports: [{port}]", "cidrs: [{address}/32]", "cidrs: [{address}]"])
async def test_what_is_skipped_on_its_way_out_goes_in_clear_and_is_counted(town: Town, caller: str, by: str) -> None:
    db = town["db"]
    skip = by.format(port=db.port, address=db.address)
    before = await counted(town, caller, "skipped"), await counted(town, caller, "captured")
    async with (
        traffic.serving(db.server, db.address, db.port, traffic.greet(HELLO)) as served,
        said(town, caller, f"capture: {{out: {{skip: {{{skip}}}}}}}"),
    ):
        assert await exchange(town, caller, "db") == HELLO + b"word"
        after = await counted(town, caller, "skipped"), await counted(town, caller, "captured")
        assert after == (before[0] + 1, before[1])
        record = await town.record("two", direction="inbound", destination__workload="shop/db", state="closed")
        assert (record["security"], record["source"].get("identity", "")) == ("plaintext", "")
        came = len(served.peers)
        async with town.mode("STRICT"):  # to the other end it is a stranger
            assert await exchange(town, caller, "db") == b""
        assert len(served.peers) == came
    async with traffic.serving(db.server, db.address, db.port, traffic.greet(HELLO)):
        assert await exchange(town, caller, "db") == HELLO + b"word"
    record = await town.record("two", direction="inbound", destination__workload="shop/db", state="closed")
    assert record["security"] == "mtls"


async def test_what_is_skipped_goes_on_while_the_mesh_changes(town: Town) -> None:
    db, web = town["db"], town["web"]
    skip = f"capture: {{out: {{skip: {{ports: [{db.port}]}}}}}}"
    served = 0
    async with (
        traffic.serving(db.server, db.address, db.port, traffic.greet(HELLO)),
        said(town, "front", skip),
        trio.open_nursery() as nursery,
    ):

        async def call() -> None:
            nonlocal served
            while True:
                assert await traffic.ask(town["front"].place, db.address, db.port) == HELLO + b"ping"
                served += 1

        nursery.start_soon(call)
        for number in range(20):
            await town.mesh.label(web.workload, turn=str(number))
        nursery.cancel_scope.cancel()
    await town.mesh.label(web.workload, turn=None)
    assert served > 20


async def test_a_user_is_skipped_inside_a_namespace(town: Town) -> None:
    front, db = town["front"], town["db"]
    monitor = Place(front.place.namespace, STRANGER)
    async with (
        traffic.serving(db.server, db.address, db.port, traffic.echo),
        said(town, "front", f"capture: {{out: {{skip: {{uids: [{STRANGER}]}}}}}}"),
        sniff(town.lab.topology, town.one.port) as sniffer,
    ):
        sniffer.restart(MARKER)
        assert await traffic.ask(front.place, db.address, db.port, MARKER) == MARKER
        sniffer.drain()
        with not_even_once():
            assert sniffer.leaks.clear == 0
        assert await traffic.ask(monitor, db.address, db.port, MARKER) == MARKER
        sniffer.drain()
        assert sniffer.leaks.clear == 2 * len(MARKER)


async def test_what_all_skip_stands_in_the_mesh(town: Town) -> None:
    db = town["db"]
    skip = f"capture: {{out: {{skip: {{ports: [{db.port}]}}}}}}"
    mesh = "kind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: demo.example, "
    async with traffic.serving(db.server, db.address, db.port, traffic.greet(HELLO)), town.mode():
        await town.mesh.apply(f"{mesh}{skip}}}")
        for caller in ("web", "cart", "front"):
            before = await counted(town, caller, "skipped")
            assert await exchange(town, caller, "db") == HELLO + b"word"
            assert await counted(town, caller, "skipped") == before + 1


@pytest.mark.parametrize("server", ["db", "mail", "store", "six"])
async def test_a_skip_on_the_way_in_lets_strangers_past_the_agent(town: Town, server: str) -> None:
    destination = town[server]
    outsider = Place(town.far.namespace)
    async with (
        traffic.serving(destination.server, destination.address, destination.port, traffic.greet(HELLO)) as served,
        said(town, server, f"capture: {{in: {{skip: {{ports: [{destination.port}]}}}}}}"),
    ):
        before = len(await town.records("two", direction="inbound", destination__workload=destination.workload))
        counts = await counted(town, server, "skipped")
        assert await traffic.ask(outsider, destination.address, destination.port) == HELLO + b"ping"
        assert await counted(town, server, "skipped") == counts + 1
        after = await town.records("two", direction="inbound", destination__workload=destination.workload)
        assert len(after) == before
        assert served.peers
        # Who is enrolled comes through the mesh all the same.
        assert await exchange(town, "web", server) == HELLO + b"word"
        record = await town.record("two", direction="inbound", destination__workload=destination.workload)
        assert record["security"] == "mtls"


PEER = """\
kind: PeerAuthentication
metadata: {{namespace: shop, name: open}}
spec: {{selector: {{matchLabels: {{app: db}}}}, mtls: {{mode: STRICT}}, portLevelMtls: {{"{port}": {{mode: {mode}}}}}}}
"""


async def test_strict_is_stronger_than_a_skip_on_the_way_in(town: Town) -> None:
    db = town["db"]
    outsider = Place(town.far.namespace)
    async with (
        traffic.serving(db.server, db.address, db.port, traffic.greet(HELLO)) as served,
        said(town, "db", f"capture: {{in: {{skip: {{ports: [{db.port}]}}}}}}"),
    ):
        assert await traffic.ask(outsider, db.address, db.port) == HELLO + b"ping"
        came = len(served.peers)
        async with town.mode("STRICT"):  # written after the skip
            assert await traffic.refused(outsider, db.address, db.port)
            assert await traffic.refused(Place(town.two.namespace, STRANGER), db.address, db.port)
            status = await town.mesh.status()
            (two,) = (n for n in status.nodes if n.name == "two")
            assert [p for p in two.problems if "capture.in.skip does not hold at port" in p and "mode STRICT" in p]
            assert await exchange(town, "web", "db") == HELLO + b"word"
            assert len(served.peers) == came + 1
            try:
                await town.mesh.apply(PEER.format(port=db.port, mode="PERMISSIVE"))
                assert await traffic.ask(outsider, db.address, db.port) == HELLO + b"ping"
                await town.mesh.apply(PEER.format(port=db.port, mode="STRICT"))
                assert await traffic.refused(outsider, db.address, db.port)
            finally:
                with trio.CancelScope(shield=True):
                    await town.mesh.operator("delete", "peerauthentication", "shop/open")
        assert await traffic.ask(outsider, db.address, db.port) == HELLO + b"ping"


async def test_opaque_is_on_record_at_both_ends(town: Town) -> None:
    db = town["db"]
    async with traffic.serving(db.server, db.address, db.port, traffic.greet(HELLO)):
        assert await exchange(town, "web", "db") == HELLO + b"word"
        assert not (await town.record("one", source__workload="shop/web", state="closed")).get("opaque", False)
        async with said(town, "db", f"capture: {{in: {{opaque: {{ports: [{db.port}]}}}}}}"):
            assert await exchange(town, "web", "db") == HELLO + b"word"
            for node in ("one", "two"):
                record = await town.record(node, source__workload="shop/web", state="closed", opaque=True)
                assert record["security"] == "mtls"
