"""How much of everything: the plan of each command."""

import msgspec

from bench import measures
from bench.measures import Measure
from bench.peers import Direct, Peer
from bench.peers.culvert import Culvert
from bench.peers.envoy import EnvoyCaptured, EnvoyHbone, EnvoyTcp
from bench.peers.haproxy import Haproxy
from bench.peers.nginx import Nginx
from bench.peers.stunnel import Stunnel
from bench.rows import STEADY_CONNECTIONS
from bench.samples import Record
from bench.schedule import Plan

SIZES = (10, 1_000, 100_000)
"""Workloads in the registry, for the cost of a large mesh."""
POLICIES = 10_000
"""Policies of the server, none of which names the client."""

QUICK_SECONDS = 190.0
"""Leaves a `quick` of four minutes room to start and to clean up."""


def peers() -> list[Peer]:
    """Everybody, the two that are compared first beside each other."""
    return [Direct(), EnvoyHbone(), Culvert(), EnvoyCaptured(), EnvoyTcp(), Nginx(), Haproxy(), Stunnel()]


def quick_peers() -> list[Peer]:
    """The two that the ratios are made of."""
    return [EnvoyHbone(), Culvert()]


def sized_peers() -> list[Peer]:
    """Culvert with meshes of several sizes, and with many policies."""
    return [*(Culvert(f"culvert-{size}", size) for size in SIZES), Culvert("culvert-policies", policies=POLICIES)]


def quick() -> Plan:
    """Short measurements, many turns; more turns help against noise more than repeats do."""
    return Plan((1,), 1, 7, (measures.idle(1000),), _basic(1.5, 1500), QUICK_SECONDS, tries=2)


def full(workers: tuple[int, ...], rounds: int, seconds: float) -> Plan:
    """Every round brings all peers up afresh."""
    steady = tuple(measures.steady(count, seconds) for count in STEADY_CONNECTIONS)
    memory = (measures.idle(1000), measures.idle(10_000))
    return Plan(workers, rounds, 1, memory, (*_basic(seconds, 3000), *steady))


def scale(rounds: int, seconds: float) -> Plan:
    """The data path beside a large mesh."""
    load = (measures.wrk(16, seconds), measures.ab(3000, 16), measures.iperf(1, seconds))
    return Plan((1,), 1, rounds, (measures.idle(1000),), load)


def present(wanted: list[Peer], record: Record) -> list[Peer]:
    """Those that can run here; the others are noted in the record."""
    record.skipped |= {peer.name: f"not installed: {lack}" for peer in wanted if (lack := peer.missing())}
    found = [peer for peer in wanted if peer.name not in record.skipped]
    record.versions |= {peer.name: peer.version() for peer in found}
    return found


def keep(record: Record) -> bytes:
    """A record as its file has it."""
    return msgspec.json.format(msgspec.json.encode(record), indent=1)


def _basic(seconds: float, new_connections: int) -> tuple[Measure, ...]:
    return (
        *(measures.wrk(count, seconds) for count in (1, 16, 64)),
        measures.ab(new_connections, 16),
        *(measures.iperf(flows, seconds) for flows in (1, 8)),
    )
