"""What capture leaves alone, and what is carried without ever being looked into: of one workload, or of all.

Two things are kept apart. `skip` is not captured at all: it travels as it always did, in clear, without identity and
past every policy of this node. `opaque` is captured and has mutual TLS and policies on connections; it is only never
taken for HTTP, whatever it looks like.
"""

import enum
import ipaddress
from typing import Annotated

import msgspec

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Uid = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 2)]


def _check_cidrs(cidrs: tuple[str, ...]) -> None:
    for text in cidrs:
        try:
            network = ipaddress.ip_network(text, strict=False)
        except ValueError as error:
            raise ValueError(f"cidrs: {text!r} is no address and no CIDR, as in 10.0.0.0/8") from error
        if str(network) != text and str(network.network_address) != text:
            raise ValueError(f"cidrs: {text!r} must be written {network}")


class Skip(msgspec.Struct, frozen=True, omit_defaults=True):
    """Connections that are not captured. Each field by itself names some: it takes one of them to be skipped.

    `ports` are those of the workload that is called; `cidrs` where the other end is; `uids` the users on this machine
    who make the connection.
    """

    ports: tuple[Port, ...] = ()
    cidrs: tuple[str, ...] = ()
    uids: tuple[Uid, ...] = ()

    def __post_init__(self) -> None:
        _check_cidrs(self.cidrs)

    def __or__(self, other: "Skip") -> "Skip":
        return Skip(self.ports + other.ports, self.cidrs + other.cidrs, self.uids + other.uids)

    @property
    def empty(self) -> bool:
        return not (self.ports or self.cidrs or self.uids)


class Opaque(msgspec.Struct, frozen=True, omit_defaults=True):
    """Connections that are never taken for HTTP: to one of `ports`, or with the other end in one of `cidrs`."""

    ports: tuple[Port, ...] = ()
    cidrs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_cidrs(self.cidrs)


class Flow(msgspec.Struct, frozen=True, omit_defaults=True):
    """One direction."""

    skip: Skip = Skip()
    opaque: Opaque = Opaque()


class FailMode(enum.Enum):
    """What becomes of a workload's captured connections while its node's agent is away: refused at once (`closed`, in
    every mode), or passed in clear and counted (`open`)."""

    CLOSED = "closed"
    OPEN = "open"


class Unmeshed(enum.Enum):
    """What becomes of a workload's packets that the mesh does not carry: UDP and whatever else is not TCP (ICMP apart).
    They are counted in any case.

    allow      they go as they always did, in clear
    block      they are dropped, but for questions for names (UDP to port 53) and for what `out.skip` names
    block-all  so are questions for names, unless `out.skip` names them
    """

    ALLOW = "allow"
    BLOCK = "block"
    BLOCK_ALL = "block-all"


class CaptureSettings(msgspec.Struct, frozen=True, omit_defaults=True):
    """`out` is about connections that a workload makes, `in` about those that arrive for it. What the Mesh says holds
    for every workload, and what a Workload says holds besides; only of `unmeshed` it holds instead."""

    out: Flow = Flow()
    in_: Flow = msgspec.field(default=Flow(), name="in")
    unmeshed: Unmeshed | None = None
