"""What a node (or an operator) and the centre say to each other: values only.

Calls are HTTP/1.1 over mTLS with JSON bodies:

    POST /v1/join      JoinRequest -> JoinResponse        no client certificate; the token is the proof, used once
    POST /v1/renew     SignRequest -> SignResponse        a node, for its own certificate
    POST /v1/recover   RecoverRequest -> SignResponse     no client certificate; the key of an ended one is the proof
    POST /v1/sign      SignRequest -> SignResponse        a node, for a workload it hosts
    POST /v1/found     FoundRequest -> FoundResponse      a node: what it found on itself, all of it
    POST /v1/operators SignRequest -> SignResponse        root at the centre's machine (Unix socket), for an operator
    POST /v1/tokens    TokenRequest -> TokenResponse      an operator
    POST /v1/apply     ApplyRequest -> ApplyResponse      an operator; all of it or nothing
    POST /v1/delete    DeleteRequest -> ApplyResponse     an operator
    POST /v1/label     LabelRequest -> ApplyResponse      an operator
    GET  /v1/resources?kind=&namespace=&name=  -> Listing an operator
    GET  /v1/time      -> Time                            anybody
    GET  /v1/status    -> Status                          an operator: every node and its active revision
    GET  /v1/trust?limit=  -> TrustStatus                 an operator: which certificates end when
    POST /v1/ask       AskRequest -> AskResponse          an operator; passed on to a connected node
    GET  /v1/session   Upgrade: culvert -> 101            a node; from there on frames both ways

A refusal is Problem with a 4xx status. A frame is four bytes of length (big-endian) and that much JSON: one of
FromCentre or FromNode. List + watch: the node says which revision it has (Hello); the centre sends what came since,
or, when it no longer knows, everything with `reset`. The mesh-wide Delta is the same bytes for every node;
Private is one node's own.

Compatibility: a field that a side does not know is ignored, a missing one has its default, an unknown kind or frame is
skipped. `MINOR` counts additions; MAJOR changes only for what an old side would misread, and is refused with both
versions in the message.
"""

from typing import Annotated

import msgspec

from ca.resources.node import Discovery
from ca.resources.workload import Match

MAJOR, MINOR = 1, 1
VERSION = f"{MAJOR}.{MINOR}"
VERSION_HEADER = "culvert-version"
"""HTTP header in which either side of a call states its contract version."""
TIME_HEADER = "culvert-time"
"""HTTP header in which each answer of the centre states its time, unix seconds: how nodes know how wrong theirs is."""

DEFAULT_PORT = 15012
MAX_BODY = 16 * 2**20
"""Bytes of one HTTP body or frame. A mesh of 100,000 workloads is sent in pieces well below it."""
MOST_FOUND = 20_000
"""Of each thing in a FoundRequest. A node may register a quarter of that; each of the others gets an answer that says
so, and of millions of them the answers alone would fill the centre's memory."""


class ContractError(Exception):
    """The other side speaks a version, or said a thing, that this side cannot act on."""


def check_version(text: str) -> None:
    """Raise ContractError unless `text`, a VERSION of the other side, can be worked with."""
    major, _, minor = text.partition(".")
    if not (major.isdigit() and minor.isdigit()) or int(major) != MAJOR:
        raise ContractError(f"contract version {text!r} does not fit ours, {VERSION}: upgrade the older side")


class Problem(msgspec.Struct, frozen=True):
    """Why a call was refused: what it was about, the cause, and what to do next."""

    message: str
    kind: str = "refused"


class JoinRequest(msgspec.Struct, frozen=True):
    """`csr` is PEM for the node's key, which never leaves it; `address` is where other agents can dial the node."""

    token: str
    csr: str
    address: str
    tunnel_port: int = 15008


class JoinResponse(msgspec.Struct, frozen=True):
    """PEM: the node's chain (leaf first) and the roots of the mesh."""

    node: str
    trust_domain: str
    chain: str
    roots: str


class SignRequest(msgspec.Struct, frozen=True):
    """`csr` is PEM with the wanted identity as its only URI SAN."""

    csr: str


class SignResponse(msgspec.Struct, frozen=True):
    """PEM: leaf first, then the issuer; and the roots now in force."""

    chain: str
    roots: str


class RecoverRequest(msgspec.Struct, frozen=True):
    """A node whose `certificate` (PEM) has ended asks for the next. `proof` is made with that one's key, for this `csr`
    on this connection (see ca.recovery)."""

    certificate: str
    csr: str
    proof: str


class TokenRequest(msgspec.Struct, frozen=True):
    """`ttl` in seconds. `discovery` is what the node may register by itself; None leaves it as it is."""

    node: str
    ttl: float = 600.0
    discovery: Discovery | None = None


class TokenResponse(msgspec.Struct, frozen=True):
    token: str
    expires: float


class ApplyRequest(msgspec.Struct, frozen=True):
    """`resources` are encoded objects; with `dry_run` everything is checked and nothing changed."""

    resources: list[msgspec.Raw]
    dry_run: bool = False


_FOUND = msgspec.Meta(max_length=MOST_FOUND)


class FoundRequest(msgspec.Struct, frozen=True):
    """What a node found on itself: encoded Workloads, each with `spec.found`. Of the `sources` named here this is all
    there is: what they had registered before and is not among the workloads goes. So does what is named in `gone`,
    whatever its source."""

    workloads: Annotated[list[msgspec.Raw], _FOUND]
    sources: Annotated[list[str], _FOUND] = []
    gone: Annotated[list["ResourceName"], _FOUND] = []


class NotRegistered(msgspec.Struct, frozen=True):
    """A workload that the centre did not take, and why."""

    namespace: str
    name: str
    why: str


class FoundResponse(msgspec.Struct, frozen=True):
    """`revision` holds everything that is not in `refused`."""

    revision: int
    refused: list[NotRegistered] = []


class ResourceName(msgspec.Struct, frozen=True):
    kind: str
    name: str
    namespace: str = ""


class DeleteRequest(msgspec.Struct, frozen=True):
    resources: list[ResourceName]


class LabelRequest(msgspec.Struct, frozen=True):
    """Set the labels with a value, remove those with None."""

    resource: ResourceName
    labels: dict[str, str | None]


class ApplyResponse(msgspec.Struct, frozen=True):
    """The revision that holds the change; `changed` lists the objects that were not already so, as `kind ns/name`."""

    revision: int
    changed: list[str] = []


class Listing(msgspec.Struct, frozen=True):
    revision: int
    items: list[msgspec.Raw]


class NodeStatus(msgspec.Struct, frozen=True):
    """`active` is the revision the node acts on (0: none yet); `seen` is unix time of its last word, `contract` the
    version of the contract that its agent speaks. `away` says why its last session ended, while there is no other."""

    name: str
    address: str = ""
    connected: bool = False
    active: int = 0
    seen: float = 0.0
    agent_version: str = ""
    problems: list[str] = []
    contract: str = ""
    away: str = ""


class Status(msgspec.Struct, frozen=True):
    revision: int
    trust_domain: str
    nodes: list[NodeStatus]
    workloads: int = 0
    time: float = 0.0
    alarms: list[str] = []


class CertificateStatus(msgspec.Struct, frozen=True):
    """`what` is root, issuing, node or workload, `title` which one; `not_after` is unix time. `standing` is good, late
    (it should have been renewed by now) or ended."""

    what: str
    title: str
    not_after: float
    standing: str = "good"


class CertificateCount(msgspec.Struct, frozen=True):
    """How many certificates of a kind there are, by standing."""

    what: str
    good: int = 0
    late: int = 0
    ended: int = 0


class TrustStatus(msgspec.Struct, frozen=True):
    """The certificates that somebody needs: those that end first, in this order, and how many there are in all.
    `alarms` says of each that is late or ended what to do. `workload_life` is how many seconds the next certificate of
    a workload is good for."""

    certificates: list[CertificateStatus]
    counts: list[CertificateCount] = []
    alarms: list[str] = []
    revocations: int = 0
    time: float = 0.0
    workload_life: float = 0.0


class Time(msgspec.Struct, frozen=True):
    """The centre's, unix seconds."""

    time: float


class AskRequest(msgspec.Struct, frozen=True):
    """A question for `node`; topics are those of the agent's admin API."""

    node: str
    topic: str


class AskResponse(msgspec.Struct, frozen=True):
    """The node's answer; or `error` with nothing in `body`, where the node is away or does not know the topic."""

    body: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""


class FromNode(msgspec.Struct, frozen=True, tag_field="frame"):
    """Base of what a node says in a session."""


class Hello(FromNode, frozen=True, tag="hello"):
    """First frame. `revision` and `incarnation` are those of the node's last view (0 and "" if it has none)."""

    version: str
    agent_version: str
    revision: int = 0
    incarnation: str = ""


class Report(FromNode, frozen=True, tag="report"):
    """`active` is the revision that certificates, listeners and capture rules all follow now."""

    active: int
    problems: list[str] = []


class Answer(FromNode, frozen=True, tag="answer"):
    """To an Ask with the same `id`; `error` is empty when `body` holds the answer."""

    id: int
    body: msgspec.Raw = msgspec.Raw(b"null")
    error: str = ""


class WhatTime(FromNode, frozen=True, tag="what-time"):
    """Asks for a TimeIs; `sent` comes back as it was."""

    sent: float


class FromCentre(msgspec.Struct, frozen=True, tag_field="frame"):
    """Base of what the centre says in a session."""


class Delta(FromCentre, frozen=True, tag="delta"):
    """Objects put and deleted up to `revision`. With `reset` the view so far is void; with `more` another Delta follows
    before the view is whole. Workloads come without `match`."""

    revision: int
    incarnation: str = ""
    put: list[msgspec.Raw] = []
    delete: list[ResourceName] = []
    reset: bool = False
    more: bool = False


class LocalMatch(msgspec.Struct, frozen=True):
    namespace: str
    name: str
    match: Match


class Private(FromCentre, frozen=True, tag="private"):
    """How this node recognises its own workloads: all of them, each time; true at `revision`, and sent before the
    Delta of that revision."""

    revision: int
    matches: list[LocalMatch]


class Roots(FromCentre, frozen=True, tag="roots"):
    """The roots to trust from now on, PEM."""

    pem: str


class Ask(FromCentre, frozen=True, tag="ask"):
    """A question to be answered with an Answer of the same `id`; topics are those of the agent's admin API."""

    id: int
    topic: str
    body: msgspec.Raw = msgspec.Raw(b"null")


class TimeIs(FromCentre, frozen=True, tag="time-is"):
    """The centre's clock, unix seconds, when it heard the WhatTime that was `sent`."""

    sent: float
    time: float


NODE_FRAMES = Hello | Report | Answer | WhatTime
CENTRE_FRAMES = Delta | Private | Roots | Ask | TimeIs
