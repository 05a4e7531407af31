"""What is to be captured: the facts that the table depends on."""

import enum
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Marks:
    """Packet marks: `agent` on what the agent sends, `spoof` on what it sends from a foreign source address; and the
    other numbers that we share with everybody else's rules. `rule_priority` is that of our routing rules: after the
    local table (0), so that addresses of our own never come there, and before the others. `nat_priority` that of the
    chains that redirect: before the translations of container engines (-100), which would otherwise decide first.
    """

    agent: int = 0xC0170001
    spoof: int = 0xC0170002
    mask: int = 0xFFFF000F
    route_table: int = 49175
    rule_priority: int = 49
    nat_priority: int = -105


@dataclass(frozen=True, slots=True)
class Recognise:
    """How a workload's own connections are told: exactly one of the fields is set.

    `cgroup` is (level, id): its depth below the cgroup v2 mount (1 for a child of the root) and the inode number of its
    directory. `everything` means the whole network namespace is the workload's.
    """

    uid: int | None = None
    cgroup: tuple[int, int] | None = None
    address: str | None = None
    everything: bool = False


@dataclass(frozen=True, slots=True)
class Skip:
    """Connections of a workload that are left alone: to one of `ports`, to an address in one of `networks` (CIDR), or
    made by one of `uids`."""

    ports: tuple[int, ...] = ()
    networks: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Opening:
    """Plaintext for a workload that is left alone on its way in: anybody's to one of `everyone`; to one of `ports` that
    from one of `networks`, or made on this machine by one of `uids`. No policy looks at it: the ports are those at
    which whoever plans this found that none would refuse anybody."""

    everyone: tuple[int, ...] = ()
    ports: tuple[int, ...] = ()
    networks: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()


class Rest(enum.Enum):
    """What becomes of a workload's packets that the mesh does not carry: those of UDP and others that are not TCP. All
    are counted. Names (UDP to port 53) still resolve with `block`, and with `block-all` they do not."""

    ALLOW = "allow"
    BLOCK = "block"
    BLOCK_ALL = "block-all"


@dataclass(frozen=True, slots=True)
class Capture:
    """One enrolled local workload. `workload` is namespace/name; `port` is the outbound capture port kept for it;
    `serves` are the (address, port) pairs at which it accepts connections; `shares_address` says that its address is
    its node's, so that the same ports on the node's other addresses (loopback too) are its own as well. `skip` and
    `opening` say what is left alone out of it and into it. While the agent is away, an `open` one's connections pass as
    if they were not captured, and so does plaintext that arrives for it at `open_ports`; anybody else's are refused.
    `rest` is about what is not TCP."""

    workload: str
    recognise: Recognise
    port: int
    serves: tuple[tuple[str, int], ...] = ()
    shares_address: bool = False
    skip: Skip = Skip()
    opening: Opening = Opening()
    open: bool = False
    open_ports: tuple[int, ...] = ()
    rest: Rest = Rest.ALLOW


@dataclass(frozen=True, slots=True)
class Parent:
    """A cgroup below which workloads' cgroups come and go: `number` is its id, `level` its depth (0 for the root).
    `children` are the ids of those directly below that are known to be no workload's: what any other one sends to the
    mesh is held until it has a name."""

    level: int
    number: int
    children: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Shelter:
    """Plaintext for workloads in other namespaces that is stopped here, for want of a table there. That to the
    (address, port) pairs in `endpoints`, and that to a container behind a bridge at one of the ports in `behind`,
    (bridge, port) pairs, whatever its address by now: unless that is one of `neighbours`, who are known to be none of
    those workloads, or it goes to one of `let_in`, (address, port) pairs at which plaintext may arrive for a workload.
    """

    endpoints: frozenset[tuple[str, int]] = frozenset()
    behind: frozenset[tuple[str, int]] = frozenset()
    neighbours: frozenset[str] = frozenset()
    let_in: frozenset[tuple[str, int]] = frozenset()


@dataclass(frozen=True, slots=True)
class Hold:
    """Whose connections to the mesh are stopped here, because they should have been captured in a namespace of their
    own: those of the addresses `inside`, and of everybody behind the interfaces `bridges` but the stations `vouched`
    for, each an address and the card that has it. `settled` are stations that have their own table by now: what still
    comes from there began in front of it, and is refused instead of left waiting.

    Behind `open_bridges` all workloads fail open, and so do those of the addresses `open_inside`: they are stopped only
    while the agent is there, and whoever is not vouched for is counted while it is away. `attended` are stations whose
    own table lets nothing out but then.

    `shelter` is about what goes there while the agent is away: it is refused, because a namespace that was made anew
    meanwhile has no table that would. `lobby`, which has nothing that `shelter` has not, is about what goes where there
    is no table just now: while the agent is there it waits."""

    bridges: frozenset[str] = frozenset()
    vouched: frozenset[tuple[str, str]] = frozenset()
    settled: frozenset[tuple[str, str]] = frozenset()
    attended: frozenset[tuple[str, str]] = frozenset()
    inside: frozenset[str] = frozenset()
    open_bridges: frozenset[str] = frozenset()
    open_inside: frozenset[str] = frozenset()
    shelter: Shelter = Shelter()
    lobby: Shelter = Shelter()

    @property
    def closed(self) -> "Hold":
        """The same where nothing may fail open, and nobody knows when the agent is away."""
        return Hold(
            self.bridges | self.open_bridges,
            self.vouched - self.attended,
            self.settled | self.attended,
            inside=self.inside | self.open_inside,
        )


@dataclass(frozen=True, slots=True)
class Desired:
    """All that the table depends on. `mesh` are the (address, port) pairs of every enrolled workload of the mesh;
    `agent_uids` the uids whose marked packets are exempt; `inbound_port` where arriving plaintext goes,
    `resolver_port` where connections of unknown cgroups below `parents` go;
    `capture_all` is true for the egress modes observe and registry-only. Connections to ports in `never` are left alone
    everywhere, those to `login_ports` at this machine's own addresses, and those to the (address, port) pairs in
    `spared`. From `until` (seconds of the clock that runs since boot) on the table takes nothing any more: None for one
    that was confirmed. `hold` is about what comes from other namespaces, and `told` says whether the kernel can be told
    that the agent is there, `cgroups` whether it can tell cgroups apart: without, nothing asks for one. With
    `open_elsewhere` workloads that live in other namespaces fail open, and this table keeps the count of what passes of
    those without one of their own."""

    captures: tuple[Capture, ...] = ()
    mesh: frozenset[tuple[str, int]] = frozenset()
    agent_uids: tuple[int, ...] = (0,)
    never: frozenset[int] = frozenset({22, 15000, 15001, 15006, 15008, 15012, 15014, 15020, 15021, 15053})
    inbound_port: int = 15006
    resolver_port: int = 15000
    capture_all: bool = False
    login_ports: frozenset[int] = frozenset()
    spared: frozenset[tuple[str, int]] = frozenset()
    until: float | None = None
    hold: Hold = Hold()
    told: bool = True
    open_elsewhere: bool = False
    cgroups: bool = True
    parents: tuple[Parent, ...] = ()
    marks: Marks = field(default_factory=Marks)

    @property
    def untold(self) -> "Desired":
        """The same for a kernel that cannot be told that the agent is there: nothing depends on it, and all fails
        closed."""
        captures = tuple(replace(c, open=False, open_ports=()) for c in self.captures)
        return replace(self, captures=captures, hold=self.hold.closed, told=False, open_elsewhere=False)

    @property
    def asks(self) -> bool:
        """Whether a rule asks if the agent is there."""
        return self.hold != Hold() or self.open_elsewhere or any(c.open for c in self.captures)

    @property
    def asked(self) -> tuple[Parent, ...]:
        """The parents below which cgroups may be unknown."""
        return self.parents if self.cgroups else ()

    @property
    def told_apart(self) -> tuple[Capture, ...]:
        """The captures whose own connections the kernel can recognise."""
        return tuple(c for c in self.captures if self.cgroups or c.recognise.cgroup is None)
