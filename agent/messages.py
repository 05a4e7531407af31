"""What the supervisor and a worker say to each other over their socketpair. Values only; `channel` carries them.

One message is one frame (see `channel`) of msgpack with the file descriptors that belong to it. The supervisor
speaks first: Configure, then Roots, Identities and the view, then Listen. It keeps every listening socket it hands out
open for as long as it lives, so that connections queue while a worker is replaced.
"""

import enum

import msgspec

from agent.connections import Connection, Tunnel
from ca.contract import ResourceName


class Role(enum.Enum):
    """What arrives at a listening socket.

    OUTBOUND    connections captured on their way out of the workload the socket is kept for
    PLAINTEXT   connections without identity, captured on their way to a local enrolled workload
    TUNNEL      other agents' mTLS tunnels
    RESOLVE     connections of cgroups that the rules did not know yet: the worker finds out whose they are
    """

    OUTBOUND = "outbound"
    PLAINTEXT = "plaintext"
    TUNNEL = "tunnel"
    RESOLVE = "resolve"


class ToWorker(msgspec.Struct, frozen=True, tag_field="m"):
    """Base of what the supervisor says."""


class Configure(ToWorker, frozen=True, tag="configure"):
    """First message. `mark` goes on every socket the worker dials with; `spoof_mark` instead where the source address
    is not the node's own (0: no rules lead the answers back, do not try). Connections may outlive the certificates of
    their tunnel by `overtime` seconds. It is one of so many `workers`, over which the kernel spreads connections, and
    has the `row` of the tally that the first such message brings as a file descriptor (see `agent.tally`). Before it
    sleeps it may look for `busy_poll` seconds for more (see `agent.relay.busypoll`). Without `capturing` what was
    captured ends, and no more is taken. Said again when that or the marks change; the rest then stays as it was."""

    node: str
    worker: int
    mark: int
    spoof_mark: int
    uid: int
    gid: int
    overtime: float = 0.0
    workers: int = 1
    row: int = 0
    busy_poll: float = 0.0
    capturing: bool = True


class View(ToWorker, frozen=True, tag="view"):
    """A change of the mesh view, as in contract.Delta; `reset` empties it first. `put` holds each object as JSON, the
    way the centre sent it."""

    revision: int
    put: list[bytes] = []
    delete: list[ResourceName] = []
    reset: bool = False


class Roots(ToWorker, frozen=True, tag="roots"):
    """PEM of the roots to trust."""

    pem: bytes


class Identity(ToWorker, frozen=True, tag="identity"):
    """A local identity's current certificate: PEM chain (leaf first) and PEM key. Replaces the one before."""

    uri: str
    chain: bytes
    key: bytes


class Forget(ToWorker, frozen=True, tag="forget"):
    """The last local workload with this identity is gone: no new tunnels with it."""

    uri: str


class Listen(ToWorker, frozen=True, tag="listen"):
    """One file descriptor: a listening socket. `workload` (namespace/name) is whose connections arrive there; empty for
    the shared PLAINTEXT, TUNNEL and RESOLVE sockets of the node."""

    listener: int
    role: Role
    workload: str = ""


class Unlisten(ToWorker, frozen=True, tag="unlisten"):
    """Accept no more there; established connections go on."""

    listener: int


class Namespaced(ToWorker, frozen=True, tag="namespaced"):
    """The local workloads (namespace/name) that live in a network namespace of their own: reached by Stock only."""

    workloads: list[str]


class Signs(ToWorker, frozen=True, tag="signs"):
    """How captured workloads (namespace/name) of the host are told apart: by cgroup (paths below the mount, without a
    slash at either end), source address and uid."""

    cgroups: dict[str, str]
    addresses: dict[str, str]
    uids: dict[int, str]


class Stock(ToWorker, frozen=True, tag="stock"):
    """Unconnected TCP sockets made inside `workload`'s network namespace, non-blocking, marked with `spoof_mark` and
    transparent where the kernel allows: one file descriptor each, all of `family` (socket.AF_INET or AF_INET6)."""

    workload: str
    family: int


class Drain(ToWorker, frozen=True, tag="drain"):
    """Accept nothing more, tell tunnel peers to go elsewhere, end when the last connection has, at most `seconds`."""

    seconds: float


class Inquire(ToWorker, frozen=True, tag="inquire"):
    """Asks for the live tables; answered by Tables with the same `id`, after all that was said before is done. Not
    `whole` it asks only for that, or a sign of life: the answer has nothing but gauges."""

    id: int
    whole: bool = True


class FromWorker(msgspec.Struct, frozen=True, tag_field="m"):
    """Base of what a worker says."""


class Ready(FromWorker, frozen=True, tag="ready"):
    """Privileges are dropped and the worker serves what it is handed."""

    pid: int


class Active(FromWorker, frozen=True, tag="active"):
    """The worker acts on this revision."""

    revision: int


class Closed(FromWorker, frozen=True, tag="closed"):
    """Connections that ended, in order. `dropped` counts records lost since the last message because the queue to the
    supervisor was full: traffic never waits for it."""

    connections: list[Connection]
    dropped: int = 0


class StockWanted(FromWorker, frozen=True, tag="stock-wanted"):
    """Send `count` more sockets made in the network namespace of `workload`."""

    workload: str
    family: int
    count: int


class Tables(FromWorker, frozen=True, tag="tables"):
    """Live connections and tunnels, and relay gauges (`name -> value`). With `more` they are but a part of the answer:
    more connections follow in another one of the same `id`."""

    id: int
    connections: list[Connection]
    tunnels: list[Tunnel]
    gauges: dict[str, float] = {}
    more: bool = False


class Notice(FromWorker, frozen=True, tag="notice"):
    """Something for the agent's log: a stable event name and its facts."""

    level: str
    event: str
    facts: dict[str, str] = {}


TO_WORKER = (
    Configure | View | Roots | Identity | Forget | Listen | Unlisten | Namespaced | Signs | Stock | Drain | Inquire
)
FROM_WORKER = Ready | Active | Closed | StockWanted | Tables | Notice
