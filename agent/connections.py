"""One connection as everybody sees it: worker, supervisor, access log, metrics and `culvert connections`."""

import enum
from typing import Literal

import msgspec


class _Fact(enum.Enum):
    """Hashed as what it is: Enum's own way is a call in Python, and every connection is looked up by its facts."""

    __hash__ = object.__hash__


class Direction(_Fact):
    """Which end of the connection this record speaks for."""

    OUTBOUND = "outbound"
    INBOUND = "inbound"


class Security(_Fact):
    """How the bytes travel beyond this process: in a tunnel, in clear, or not at all (both ends on this node)."""

    MTLS = "mtls"
    PLAINTEXT = "plaintext"
    LOCAL = "local"


class Verdict(_Fact):
    """allowed: it was carried. refused: policy or routing said no. failed: it was allowed, but could not be carried."""

    ALLOWED = "allowed"
    REFUSED = "refused"
    FAILED = "failed"


class Party(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One end: `workload` as namespace/name, `identity` as a SPIFFE URI, `address` as IP:port; empty when unknown."""

    workload: str = ""
    identity: str = ""
    address: str = ""


class Connection(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A live or closed connection.

    `id` is unique on the node. `sent` counts bytes from source to destination, `received` the other way. `opened` is
    unix time and `duration` seconds (so far, while live). `reason` is empty for a connection that simply worked.
    `source_kept` says that the application sees the caller's own address. `tunnel` is the id of the tunnel, if any.
    `trace` is the W3C trace id: both nodes' records of one connection have the same.
    `carried` says that it came about: bytes could flow.
    `policy` says which rule allowed it, `dry_run` which dry-run policy would not have. `opaque` says that a setting
    has it carried without ever being taken for HTTP. `preface` counts the bytes of the PROXY header that the
    application got first; `sent` has none of them. `over_budget` says that a limit of its workload refused it.
    """

    id: str
    direction: Direction
    source: Party
    destination: Party
    security: Security
    opened: float
    verdict: Verdict
    reason: str = ""
    duration: float = 0.0
    sent: int = 0
    received: int = 0
    source_kept: bool = True
    carried: bool = False
    tunnel: str = ""
    trace: str = ""
    policy: str = ""
    dry_run: str = ""
    opaque: bool = False
    preface: int = 0
    over_budget: bool = False
    state: Literal["opening", "open", "closed"] = "open"


class Tunnel(msgspec.Struct, frozen=True, omit_defaults=True):
    """One mTLS connection between two agents. `streams` are those open now, `carried` all since it opened."""

    id: str
    direction: Direction
    local_identity: str
    peer_identity: str
    peer_address: str
    opened: float
    streams: int = 0
    carried: int = 0
    sent: int = 0
    received: int = 0
    state: Literal["dialling", "open", "draining"] = "open"
