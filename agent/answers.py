"""What an agent answers to questions about itself: on its admin socket, and to the centre. Values only."""

from typing import Annotated, Literal

import msgspec

from agent.connections import Connection, Tunnel


class CaptureRow(msgspec.Struct, frozen=True):
    """How one workload is captured. `place` is empty for the machine itself; `recognised` reads as in `uid 1000`. Of
    the connections that were `bypassed`, `skipped` were so because a setting says it. `passed` are those that
    went in clear while the agent was away: only where `fail_mode` is open. The last three are packets of protocols that
    the mesh does not carry: left in clear, questions for names (not among them), and dropped."""

    workload: str
    recognised: str
    place: str = ""
    port: int = 0
    captured: int = 0
    bypassed: int = 0
    skipped: int = 0
    fail_mode: str = "closed"
    passed: int = 0
    unmeshed: int = 0
    dns: int = 0
    blocked: int = 0


class HeldRow(msgspec.Struct, frozen=True):
    """Who called the mesh and was known to no rule. Packets out of network namespaces without a table of ours: dropped,
    which TCP sends again, and refused. Connections of new cgroups, of which was asked whose they are. And attempts to
    reach a workload in another namespace: refused while the agent was away (sheltered), or delayed until that namespace
    had its rules."""

    waited: int = 0
    refused: int = 0
    asked: int = 0
    sheltered: int = 0
    delayed: int = 0


class UnnamedRow(msgspec.Struct, frozen=True):
    """Connections to the mesh that passed in clear while the agent was away, of callers that nobody could name then:
    in cgroups of new units, and out of network namespaces of new containers."""

    units: int = 0
    containers: int = 0


class CaptureAnswer(msgspec.Struct, frozen=True):
    """`on` is the operator's switch, `trial` how many seconds it stays on unless confirmed (0: for good). `places` has
    (place, mesh addresses) for each namespace with a table of ours."""

    on: bool
    rows: list[CaptureRow] = []
    places: list[tuple[str, int]] = []
    problems: list[str] = []
    trial: float = 0.0
    held: HeldRow = HeldRow()
    unnamed: UnnamedRow = UnnamedRow()


class Rules(msgspec.Struct, frozen=True):
    """The table wanted in one place, in nft's language; empty `place`: the machine itself. `difference` has the lines
    of it that the kernel lacks (+) and those it has instead (-), `words` what that means."""

    place: str
    text: str
    difference: str = ""
    words: list[str] = []


class PlanAnswer(msgspec.Struct, frozen=True):
    """What there would be with capture on. `never` says what is left alone in any case, and why."""

    tables: list[Rules]
    on: bool = True
    never: list[str] = []


class TrialRequest(msgspec.Struct, frozen=True):
    """Capture for so many seconds, then no longer unless confirmed; 0: for good. `login` is the (address, port) of this
    machine that the operator came in through, if it is known."""

    seconds: Annotated[float, msgspec.Meta(ge=0, le=86400)]
    login: tuple[str, int] | None = None


class EarlierRow(msgspec.Struct, frozen=True):
    """A connection of an enrolled workload that does not go through the agent. `local` and `remote` are IP:port of the
    workload's own socket, `process` whose it is, as far as that can be seen."""

    workload: str
    way: Literal["out", "in"]
    local: str
    remote: str
    process: str = ""
    place: str = ""


class EarlierAnswer(msgspec.Struct, frozen=True):
    """`rows` are those found, or with `ended` those that were cut. `problems` says what could not be done."""

    rows: list[EarlierRow]
    ended: bool = False
    problems: list[str] = []


class WorkloadRow(msgspec.Struct, frozen=True):
    """An enrolled workload of this node, or one that is registered here and not enrolled."""

    workload: str
    identity: str
    recognised: str
    endpoints: list[str] = []
    enrolled: bool = True
    captured: bool = False
    certificate: str = ""


class WorkloadsAnswer(msgspec.Struct, frozen=True):
    rows: list[WorkloadRow]
    problems: list[str] = []


class DiscoveredRow(msgspec.Struct, frozen=True):
    """A workload that the node found. `place` is the file, unit, container or user; `declared` says that its ports
    were, and not looked up in the kernel; `state` is registered, refused (`why` says so) or waiting for the centre."""

    source: str
    place: str
    workload: str
    account: str
    recognised: str
    ports: list[int] = []
    declared: bool = False
    state: str = "waiting"
    why: str = ""


class DiscoveredAnswer(msgspec.Struct, frozen=True):
    """`sources` are those that look; `problems` say what they could not take."""

    rows: list[DiscoveredRow]
    sources: list[str] = []
    problems: list[str] = []


class CertificateRow(msgspec.Struct, frozen=True):
    """`status` is valid, expired, waiting or failing; the dates are unix time, 0 without a certificate."""

    identity: str
    status: str
    serial: str = ""
    not_after: float = 0.0
    not_before: float = 0.0
    reason: str = ""


class CertificatesAnswer(msgspec.Struct, frozen=True):
    """`rows` begins with the node's own."""

    rows: list[CertificateRow]
    time: float = 0.0


class ConnectionsAnswer(msgspec.Struct, frozen=True):
    """`live` in the order they were opened, `closed` in the order they ended."""

    live: list[Connection]
    closed: list[Connection]
    dropped: int = 0


class TunnelsAnswer(msgspec.Struct, frozen=True):
    rows: list[Tunnel]


class StatusAnswer(msgspec.Struct, frozen=True):
    """`revision` is the last one heard of, `active` the one acted on. `not_ready` says why the node is not ready, if it
    is not; `centre_problem` why there is no session. `clock_ahead` is by how many seconds this machine's clock is ahead
    of the centre's, give or take `clock_uncertainty`; None before the centre told its time."""

    node: str
    trust_domain: str
    version: str
    centre: str
    connected: bool
    centre_problem: str
    revision: int
    active: int
    ready: bool
    not_ready: str
    capture: bool
    workloads: int
    workers: int
    worker_restarts: int
    connections: int
    tunnels: int
    started: float
    time: float
    memory: int = 0
    clock_ahead: float | None = None
    clock_uncertainty: float = 0.0
    problems: list[str] = []


class Done(msgspec.Struct, frozen=True):
    """A command was carried out; `message` says how it stands now."""

    message: str
