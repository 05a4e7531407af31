"""A machine with a worker of ours, one with Envoy, and what both must know of each other.

ours                                            theirs
  shop/web    calls                               shop/till   calls: Envoy as client, its Ways
  shop/db     serves, at the node's address       shop/bank   serves: Envoy as server, its Doors
  shop/vault  as db, but policy denies till
  shop/solo   serves, at an address of its own
  shop/six    serves, at an IPv6 address

In the mesh view each Door is a node of its own, since each has a tunnel port of its own; and one workload, which has
ten ports from the Door's `base` on.
"""

import datetime
import resource
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio
from pyroute2.iproute import IPRoute

from agent.lab.lab import Lab, make_lab
from agent.lab.mesh import WORKER_UID
from agent.lab.place import Place
from agent.lab.topology import Machine
from agent.messages import Configure, Identity, Listen, Role, Roots, View
from ca import x509
from ca.identity import Identity as AnyIdentity
from ca.identity import NodeIdentity, WorkloadIdentity
from ca.resources.kinds import Resource, encode
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Metadata, Selector
from ca.resources.node import Node, NodeSpec
from ca.resources.policy import Action, AuthorizationPolicy, AuthorizationPolicySpec, From, Rule, Source
from ca.resources.workload import Workload, WorkloadSpec
from redirect.desired import Marks
from redirect.origdst import listener
from tests.interop import envoy
from tests.interop.envoy import Door, Envoy, Way
from tests.interop.ours import OurWorker

DOMAIN = "interop.example"
TUNNEL, CAPTURE = 15008, 15101
DB, CLOSED, VAULT, SOLO, NOWHERE, SIX = 8100, 8101, 8102, 8103, 8104, 8105
"""Ports of ours: open, nobody behind it, refused by policy, at another address, of no workload, and at IPv6."""
SOLO_ADDRESS = "10.77.1.99"
SMALL = {"initial_stream_window_size": 65535, "initial_connection_window_size": 65535}
"""The least that HTTP/2 knows without asking for less."""
STATUSES = (400, 401, 403, 429, 500)
"""Envoy answers with these at the ports 2 to 6 above the plain Door's base."""


def identity(account: str) -> WorkloadIdentity:
    return WorkloadIdentity(DOMAIN, "shop", account)


@dataclass(frozen=True)
class Lane:
    """Where a program dials, and where that arrives."""

    caller: Place
    address: str
    port: int
    server: Place
    served_address: str
    served_port: int


@dataclass
class Scene:
    """Both machines and what runs on them; tests leave it as they found it."""

    lab: Lab
    ours: Machine
    theirs: Machine
    certificates: Path
    doors: dict[str, tuple[Door, int]]
    ways: dict[str, Way]
    tunnels: socket.socket
    captured: socket.socket
    worker: OurWorker = field(init=False)
    envoy: Envoy = field(init=False)

    def lane(self, name: str) -> Lane:
        """`us NAME` leads through a Way of Envoy's to our worker, `envoy NAME` from our worker through a Door."""
        to, _, name = name.partition(" ")
        ours, theirs = Place(self.ours.namespace), Place(self.theirs.namespace)
        if to == "us":
            way = self.ways[name]
            address, _, port = way.authority.rpartition(":")
            return Lane(theirs, "127.0.0.1", way.port, ours, address.strip("[]"), int(port))
        base = self.doors[name][1]
        return Lane(ours, self.theirs.address, base, theirs, self.theirs.address, base)

    async def start_worker(self, name: str, number: int) -> OurWorker:
        """A worker on our machine's listening sockets."""
        worker = OurWorker(self.lab, self.ours, name)
        await worker.say(Configure("ours", number, Marks().agent, 0, WORKER_UID, WORKER_UID))
        await worker.say(Roots((self.certificates / "roots.pem").read_bytes()))
        for account in ("web", "db", "vault", "solo", "six"):
            chain, key = ((self.certificates / f"{account}.{kind}").read_bytes() for kind in ("pem", "key"))
            await worker.say(Identity(str(identity(account)), chain, key))
        await worker.say(View(1, [encode(r) for r in self._view()], reset=True))
        await worker.say(Listen(0, Role.TUNNEL), [self.tunnels.fileno()])
        await worker.say(Listen(1, Role.OUTBOUND, "shop/web"), [self.captured.fileno()])
        await worker.ready()
        return worker

    async def start_envoy(self, name: str, ways: list[Way], doors: list[Door], admin: int) -> Envoy:
        return await envoy.start(self.lab, self.theirs, self.certificates, ways, doors, name, admin)

    def _view(self) -> Iterator[Resource]:
        yield Mesh(Metadata("mesh"), MeshSpec(DOMAIN))
        yield Node(Metadata("ours"), NodeSpec(self.ours.address))
        for account, ports in (("web", ()), ("db", (DB, CLOSED)), ("vault", (VAULT,))):
            yield _workload(account, WorkloadSpec("ours", account, ports=ports))
        yield _workload("solo", WorkloadSpec("ours", "solo", SOLO_ADDRESS, (SOLO,)))
        yield _workload("six", WorkloadSpec("ours", "six", self.ours.address6, (SIX,)))
        for name, (door, base) in self.doors.items():
            yield Node(Metadata(name), NodeSpec(self.theirs.address, door.port))
            yield _workload(f"bank-{name}", WorkloadSpec(name, "bank", ports=tuple(range(base, base + 10))))
        nobody = Rule(from_=(From(Source(principals=(f"{DOMAIN}/ns/shop/sa/till",))),))
        yield AuthorizationPolicy(
            Metadata("no-till", "shop"),
            AuthorizationPolicySpec(Action.DENY, Selector({"app": "vault"}), (nobody,)),
        )


def _workload(name: str, spec: WorkloadSpec) -> Workload:
    return Workload(Metadata(name, "shop", {"mesh": "on", "app": name}), spec)


def _ways(ours: str, ours6: str) -> Iterator[Way]:
    node, db, vault, six = f"{ours}:{TUNNEL}", identity("db"), identity("vault"), identity("six")
    yield Way("plain", 9100, f"{ours}:{DB}", node, str(db), db.sni)
    yield Way("small", 9101, f"{ours}:{DB}", node, str(db), db.sni, http2=SMALL)
    yield Way("closed", 9102, f"{ours}:{CLOSED}", node, str(db), db.sni)
    yield Way("denied", 9103, f"{ours}:{VAULT}", node, str(vault), vault.sni)
    yield Way("nowhere", 9104, f"{ours}:{NOWHERE}", node, str(db), db.sni)
    yield Way("another's", 9105, f"{ours}:{DB}", node, str(vault), vault.sni)
    yield Way("by-name", 9106, f"db.shop.mesh:{DB}", node, str(db), db.sni)
    yield Way("six", 9114, f"[{ours6}]:{SIX}", node, str(six), six.sni)
    yield Way("no-sni", 9107, f"{SOLO_ADDRESS}:{SOLO}", f"{SOLO_ADDRESS}:{TUNNEL}", str(identity("solo")))
    yield Way("no-sni-shared", 9108, f"{ours}:{DB}", node, str(db))
    yield Way("sni-of-nobody", 9109, f"{ours}:{DB}", node, str(db), identity("nobody").sni)
    yield Way("expects-another", 9110, f"{ours}:{DB}", node, str(vault), db.sni)
    yield Way("anonymous", 9111, f"{ours}:{DB}", node, str(db), db.sni, certificate="")
    yield Way("foreign", 9112, f"{ours}:{DB}", node, str(db), db.sni, certificate="foreign")
    yield Way("node", 9113, f"{ours}:{DB}", node, str(db), db.sni, certificate="node")


def _doors(theirs: str) -> Iterator[tuple[Door, int]]:
    def door(name: str, number: int, *more: int, expects: str = "web", **settings: object) -> tuple[Door, int]:
        base = 8200 + 10 * number
        routes: dict[str, str | int] = {f"{theirs}:{base + i}": f"{theirs}:{base + i}" for i in (0, 1)}
        routes |= {f"{theirs}:{base + i}": status for i, status in enumerate(more, 2)}
        return Door(name, TUNNEL + 10 * number, str(identity(expects)), routes, **settings), base

    yield door("plain", 0, *STATUSES)
    yield door("small", 1, http2=SMALL)
    yield door("narrow", 2, http2={"max_concurrent_streams": 4})
    yield door("expects-another", 3, expects="db")
    yield door("another", 4, certificate="till")
    yield door("brief", 5, settings={"common_http_protocol_options": {"max_requests_per_connection": 3}})
    yield door("spare", 6)


@contextmanager
def scene() -> Iterator[Scene]:
    """A running scene for the time of the block; not bound to an event loop."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Children inherit it: more than a thousand connections at once, some with both ends in one process.
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limits[0], min(limits[1], 8192)), limits[1]))
    lab = make_lab()
    try:
        made = _build(lab)
        try:
            trio.run(_start, made)
            yield made
            trio.run(made.worker.close)
        finally:
            made.tunnels.close()
            made.captured.close()
    finally:
        trio.run(lab.close)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def _build(lab: Lab) -> Scene:
    ours, theirs = lab.topology.machine("ours"), lab.topology.machine("theirs")
    ours.namespace.run(_own_address)
    rules = f"""table ip interop {{ chain output {{
        type nat hook output priority -100
        meta mark {Marks().agent} accept
        ip daddr {theirs.address} tcp dport 8200-8299 redirect to :{CAPTURE}
    }}
    }}
    """
    subprocess.run(Place(ours.namespace).command(["nft", "-f", "-"]), input=rules, text=True, check=True)
    certificates = lab.directory / "certificates"
    certificates.mkdir()
    _certify(certificates)

    def sockets() -> tuple[socket.socket, socket.socket]:
        tunnels = listener(socket.AF_INET, "0.0.0.0", TUNNEL, Marks().agent)
        return tunnels, listener(socket.AF_INET, "127.0.0.1", CAPTURE, Marks().agent)

    tunnels, captured = ours.namespace.run(sockets)
    doors = {door.name: (door, base) for door, base in _doors(theirs.address)}
    ways = {way.name: way for way in _ways(ours.address, ours.address6)}
    return Scene(lab, ours, theirs, certificates, doors, ways, tunnels, captured)


async def _start(made: Scene) -> None:
    # The spare Door's Envoy is for tests that end it.
    doors = [door for name, (door, _) in made.doors.items() if name != "spare"]
    made.worker = await made.start_worker("worker", 0)
    made.envoy = await made.start_envoy("envoy", list(made.ways.values()), doors, envoy.ADMIN)


def _own_address() -> None:
    with IPRoute() as ip:
        ip.addr("add", index=ip.link_lookup(ifname="lo")[0], address=SOLO_ADDRESS, prefixlen=32)


def _certify(directory: Path) -> None:
    """`ACCOUNT.pem` and `.key` for everybody, and `roots.pem`. One leaf is below a root that nobody trusts."""
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    root, stranger = x509.new_root(DOMAIN, now, day), x509.new_root(DOMAIN, now, day)
    issuing, forged = x509.new_issuing(root, now, day), x509.new_issuing(stranger, now, day)
    leaves: list[tuple[str, AnyIdentity, x509.Issuer]] = [
        (account, identity(account), issuing) for account in ("web", "db", "vault", "solo", "six", "till", "bank")
    ]
    leaves += [("node", NodeIdentity(DOMAIN, "theirs"), issuing), ("foreign", identity("till"), forged)]
    for name, who, issuer in leaves:
        key = x509.new_key()
        leaf = x509.issue(issuer, who, key.public_key(), now, day)
        (directory / f"{name}.pem").write_bytes(x509.pem(leaf, issuer.cert))
        (directory / f"{name}.key").write_bytes(x509.key_pem(key))
    (directory / "roots.pem").write_bytes(x509.pem(root.cert))
