"""One workload as a source found it. Values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from ca.resources.capture import FailMode
from ca.resources.kinds import decode, encode
from ca.resources.metadata import Key, Metadata
from ca.resources.workload import Match, Origin, Workload, WorkloadSpec

SOURCES = ("files", "systemd", "containers", "users")
"""Every source there is. Where two find the same, the one that stands first here goes first."""


@dataclass(frozen=True, slots=True)
class Found:
    """A workload of this node. `place` is what people know it by: a file, a unit, a container. `ports` is None where
    nobody says which: then the kernel is asked. `address` is empty for its node's. ValueError for what could be no
    Workload."""

    source: str
    place: str
    namespace: str
    name: str
    service_account: str
    match: Match
    ports: tuple[int, ...] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = ""
    more: WorkloadSpec | None = None
    """What else is said of it, in the fields that are not here."""

    def __post_init__(self) -> None:
        if not self.namespace or not self.service_account:
            raise ValueError(f"it has no {'serviceAccount' if self.namespace else 'namespace'}; give it one")
        try:
            # Numbers have their limits on the wire only.
            decode(encode(self.workload("node", self.ports or ())))
        except msgspec.ValidationError as error:
            raise ValueError(str(error)) from error

    @property
    def key(self) -> Key:
        """Its name in the mesh."""
        return Key("Workload", self.namespace, self.name)

    @property
    def title(self) -> str:
        """`namespace/name`."""
        return f"{self.namespace}/{self.name}"

    def workload(self, node: str, ports: tuple[int, ...]) -> Workload:
        """What is to be registered. One that serves nothing needs no address of its own."""
        labels = dict(self.labels)
        spec = msgspec.structs.replace(
            self.more or WorkloadSpec(node, self.service_account),
            node=node,
            service_account=self.service_account,
            address=self.address if ports else "",
            ports=ports,
            match=self.match,
            found=Origin(self.source, labels),
        )
        return Workload(Metadata(self.name, self.namespace, labels), spec)


def failing(mode: str, node: str, service_account: str) -> WorkloadSpec | None:
    """A spec that says what becomes of its connections while the agent is away; None where nothing is said. ValueError
    for what is no mode."""
    if not mode:
        return None
    modes = [m.value for m in FailMode]
    if mode not in modes:
        raise ValueError(f"fail mode {mode!r}: use {' or '.join(modes)}")
    return WorkloadSpec(node, service_account, fail_mode=FailMode(mode))


@dataclass(frozen=True, slots=True)
class Seen:
    """All that one source sees now, and a sentence for each thing that it cannot take. With `whole` unset there may be
    more, so that nothing registered before may be taken for gone."""

    found: tuple[Found, ...] = ()
    problems: tuple[str, ...] = ()
    whole: bool = True


Publish = Callable[[Seen], None]


class Source(Protocol):
    """A way to find workloads. `run` publishes what it sees, first as soon as it can and then with every change, until
    it is cancelled; whatever it raises is logged, and it is run again."""

    name: str

    async def run(self, publish: Publish) -> None: ...
