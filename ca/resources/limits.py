"""What a workload may take of the agent that it shares with its neighbours."""

import re
from typing import Annotated

import msgspec

Amount = Annotated[int, msgspec.Meta(ge=1)]

_SIZE = re.compile(r"(\d+)(Ki|Mi|Gi)?")
_UNITS = {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


def size(text: str) -> int:
    """Bytes, from a number with or without Ki, Mi or Gi; ValueError if it is none."""
    found = _SIZE.fullmatch(text)
    if not found or int(found[1]) == 0:
        raise ValueError(f"memory {text!r} is no size, as in 64Mi")
    return int(found[1]) * _UNITS[found[2]]


class Limits(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """For each direction by itself: connections that the workload makes, and those that arrive for it. What is over a
    limit is refused at once.

    `connections` that are open at a time, and how many may begin in a second; the `descriptors` they take in the agent;
    the `memory` they may take there, as in 64Mi, counted at the most that a connection can take. None is no limit.
    """

    connections: Amount | None = None
    connections_per_second: Amount | None = None
    descriptors: Amount | None = None
    memory: str | None = None

    def __post_init__(self) -> None:
        if self.memory is not None:
            size(self.memory)

    def else_(self, other: "Limits") -> "Limits":
        """These, and where one is None the other's."""
        return Limits(
            self.connections if self.connections is not None else other.connections,
            self.connections_per_second if self.connections_per_second is not None else other.connections_per_second,
            self.descriptors if self.descriptors is not None else other.descriptors,
            self.memory if self.memory is not None else other.memory,
        )
