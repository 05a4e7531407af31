"""Who reaches whom, and as whom: programs that know nothing of a mesh, told apart by uid, cgroup and namespace."""

import itertools
from functools import partial

import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place
from agent.lab.sniffer import sniff
from tests.netns import traffic
from tests.netns.town import STRANGER, Resident, Town
from tests.promises import not_even_once

GREETING = b"220 greetings from the server\r\n"


async def talk(caller: Resident, address: str, port: int, word: bytes) -> bytes:
    """What the server says first, and its echo of `word`. A cgroup is a process's, so that caller is a program."""
    if caller.place.cgroup is not None:
        ran = await programs.run(caller.place, programs.hear(address, port, word.decode()))
        assert ran.ok, ran.errors
        return ran.output
    return await traffic.ask(caller.place, address, port, word)


@pytest.mark.parametrize(
    ("caller", "server"),
    [
        *itertools.product(["web", "cart", "front"], ["db", "mail", "store", "six"]),
        *itertools.product(["db", "mail", "store"], ["web", "cart", "front"]),
    ],
)
async def test_across_nodes_both_ends_see_the_same_two_identities(town: Town, caller: str, server: str) -> None:
    source, destination = town[caller], town[server]
    word = f"{caller}-{server}".encode()
    async with traffic.serving(
        destination.server, destination.address, destination.port, traffic.greet(GREETING)
    ) as served:
        said = await talk(source, destination.address, destination.port, word)
    assert said == GREETING + word
    facts = {
        "source__identity": source.identity,
        "destination__identity": destination.identity,
        "destination__workload": destination.workload,
        "security": "mtls",
        "verdict": "allowed",
        "state": "closed",
        "sent": len(word),
        "received": len(said),
    }
    sending = await town.record(source.node, direction="outbound", source__workload=source.workload, **facts)
    arriving = await town.record(destination.node, direction="inbound", **facts)
    own = own_address(town, caller, destination.address)
    assert sending["source"]["address"].rpartition(":")[0].strip("[]") == own
    if own == source.address:  # the server sees the caller's own address
        assert arriving["source"]["workload"] == source.workload
        assert arriving["source"]["address"] == sending["source"]["address"]
        assert arriving.get("source_kept", True)
        assert served.peers == [own]
    else:  # the mesh does not know this address for the workload, so its word is not taken for it; the record says so
        assert arriving["source_kept"] is False
        assert served.peers != [own]


@pytest.mark.parametrize(
    ("caller", "server"), [*itertools.permutations(["web", "cart", "front"], 2), ("db", "store"), ("store", "mail")]
)
async def test_on_one_node_neighbours_are_told_apart(town: Town, caller: str, server: str) -> None:
    source, destination = town[caller], town[server]
    word = f"{caller}-{server}".encode()
    async with traffic.serving(destination.server, destination.address, destination.port, traffic.greet(GREETING)):
        assert await talk(source, destination.address, destination.port, word) == GREETING + word
    for direction in ("outbound", "inbound"):
        record = await town.record(
            source.node,
            direction=direction,
            source__identity=source.identity,
            destination__identity=destination.identity,
            verdict="allowed",
        )
        assert record["security"] in ("local", "mtls")


async def test_to_the_unenrolled_in_plaintext(town: Town) -> None:
    for address, place, port in (
        (town.far.address, Place(town.far.namespace), 9000),
        (town.far.address6, Place(town.far.namespace), 9000),
        (town["idle"].address, town["idle"].place, town["idle"].port),
    ):
        async with traffic.serving(place, address, port, traffic.greet(GREETING)) as served:
            for caller in ("web", "cart", "front"):
                assert await talk(town[caller], address, port, b"word") == GREETING + b"word"
        assert served.peers == [own_address(town, caller, address) for caller in ("web", "cart", "front")]


async def test_what_goes_to_no_mesh_address_is_counted_by_the_kernel(town: Town) -> None:
    async def bypassed(name: str) -> int:
        rows = (await town.mesh.ask(town.node("one"), "capture"))["rows"]
        return sum(row.get("bypassed", 0) for row in rows if row["workload"] == f"shop/{name}")

    place = Place(town.far.namespace)
    before = {name: await bypassed(name) for name in ("web", "cart", "front")}
    async with traffic.serving(place, town.far.address, 9000, traffic.echo):
        for _ in range(3):
            await talk(town["web"], town.far.address, 9000, b"word")
    assert await bypassed("web") == before["web"] + 3
    assert {name: await bypassed(name) for name in ("cart", "front")} == {n: before[n] for n in ("cart", "front")}


@pytest.mark.parametrize("caller", ["web", "cart", "front"])
async def test_egress_modes(town: Town, caller: str) -> None:
    """bypass leaves strangers to the kernel; observe carries and records them; registry-only refuses them."""
    stranger, port = town.far.address, 9000
    facts = {
        "direction": "outbound",
        "source__workload": f"shop/{caller}",
        "destination__address": f"{stranger}:{port}",
    }
    async with traffic.serving(Place(town.far.namespace), stranger, port, traffic.greet(GREETING)) as served:
        assert await talk(town[caller], stranger, port, b"word") == GREETING + b"word"
        assert await town.records("one", **facts) == []
        async with town.mode(egress="observe"):
            assert await talk(town[caller], stranger, port, b"word") == GREETING + b"word"
            record = await town.record("one", state="closed", **facts)
            assert (record["security"], record["verdict"]) == ("plaintext", "allowed")
            assert served.peers == [town[caller].address] * 2
            # The mesh is served as before.
            db = town["db"]
            async with traffic.serving(db.server, db.address, db.port, traffic.greet(GREETING)):
                assert await talk(town[caller], db.address, db.port, b"word") == GREETING + b"word"
        async with town.mode(egress="registry-only"):
            hear = programs.hear(stranger, port, "word")
            assert not (await programs.run(town[caller].place, hear)).ok
            record = await town.record("one", state="closed", verdict="refused", **facts)
            assert record["reason"]
            assert len(served.peers) == 2
        assert await talk(town[caller], stranger, port, b"word") == GREETING + b"word"


def own_address(town: Town, name: str, towards: str) -> str:
    """The address that a resident's packets carry on the way to another address: of the same family."""
    resident = town[name]
    hosts = [town.one, town.two, *(pod for _, pod in town.lab.topology.pods)]
    (host,) = [h for h in hosts if h.namespace == resident.place.namespace]
    return host.address6 if ":" in towards else host.address


@pytest.mark.parametrize("server", ["db", "mail", "store", "six"])
async def test_from_the_unenrolled_in_both_modes(town: Town, server: str) -> None:
    destination = town[server]
    outsiders = [Place(town.far.namespace), Place(town.two.namespace, STRANGER), town["idle"].place]
    reach = partial(traffic.ask, address=destination.address, port=destination.port, text=b"let me in")
    async with traffic.serving(
        destination.server, destination.address, destination.port, traffic.greet(GREETING)
    ) as served:
        for place in outsiders:
            assert await reach(place) == GREETING + b"let me in"
        record = await town.record(
            "two",
            direction="inbound",
            destination__workload=destination.workload,
            source__identity="",
            verdict="allowed",
            state="closed",
        )
        assert record["security"] == "plaintext"
        came = len(served.peers)
        async with town.mode("STRICT"):
            for place in outsiders:
                assert await traffic.refused(place, destination.address, destination.port)
            assert await talk(town["web"], destination.address, destination.port, b"me") == GREETING + b"me"
            assert len(served.peers) == came + 1
        record = await town.record(
            "two", direction="inbound", destination__workload=destination.workload, verdict="refused"
        )
        assert record["reason"]
        assert await reach(outsiders[0]) == GREETING + b"let me in"


async def test_strict_holds_on_loopback_too(town: Town) -> None:
    """A server bound to every address is as closed from its own host, by whichever address."""
    db = town["db"]
    stranger = Place(town.two.namespace, STRANGER)
    async with traffic.serving(db.server, "0.0.0.0", db.port, traffic.echo):
        for address in (db.address, "127.0.0.1"):
            assert await traffic.ask(stranger, address, db.port) == b"ping"
        async with town.mode("STRICT"):
            for address in (db.address, "127.0.0.1"):
                assert await traffic.refused(stranger, address, db.port), address


async def test_capture_ports_take_nobody_who_was_not_sent_there(town: Town) -> None:
    for machine, node in ((town.one, "one"), (town.two, "two")):
        process = town.node(node).process
        assert process is not None
        ports = [port for port in process.ports() if port == 15006 or 15100 <= port <= 15999]
        assert len(ports) > 2, ports
        for port in ports:
            for uid in (STRANGER, town["web"].place.uid, 0):
                for address in ("127.0.0.1", machine.address, "::1"):
                    assert await _no_service(Place(machine.namespace, uid), address, port), (uid, address, port)
    front = town["front"].place
    for port in (15001, 15006):
        for address in ("127.0.0.1", town["front"].address, "::1"):
            assert await _no_service(front, address, port), (address, port)


async def _no_service(place: Place, address: str, port: int) -> bool:
    try:
        return await traffic.refused(place, address, port, seconds=1)
    except (TimeoutError, trio.TooSlowError):
        return True  # dropped: no service either


async def test_reserved_ports_are_no_way_in(town: Town) -> None:
    """Asked for through capture or dialled from afar, the agent's own ports serve no workload's traffic."""
    for port in (15000, 15001, 15006, 15015, 15053):
        assert await traffic.refused(town["web"].place, town.two.address, port)
        assert await traffic.refused(Place(town.far.namespace), town.two.address, port)


async def test_nothing_of_it_is_readable_on_the_wire(town: Town) -> None:
    marker = b"a-marker-that-is-nobody-elses-"
    async with (
        sniff(town.lab.topology, town.one.port) as sniffer,
        traffic.serving(town["db"].server, town["db"].address, town["db"].port, traffic.echo),
        traffic.serving(town["idle"].place, town["idle"].address, town["idle"].port, traffic.echo),
    ):
        sniffer.restart(marker)
        text = marker * 5000
        assert await traffic.ask(town["web"].place, town["db"].address, town["db"].port, text) == text
        sniffer.drain()
        with not_even_once():
            assert (sniffer.lost, sniffer.leaks.clear) == (0, 0)
        assert sniffer.leaks.tunnelled > 2 * len(text)
        # The same counter, on the same wire, for a server that is not enrolled.
        assert await traffic.ask(town["web"].place, town["idle"].address, town["idle"].port, text) == text
        sniffer.drain()
        assert (sniffer.lost, sniffer.leaks.clear) == (0, 2 * len(text))
