"""Who takes part in the demo: machines, workloads and the programs that stand for them."""

from collections.abc import Iterator
from dataclasses import dataclass

from agent.lab import programs
from agent.lab.lab import Lab
from agent.lab.mesh import RunningMesh, make_mesh
from agent.lab.namespace import Namespace
from agent.lab.place import Place
from agent.lab.process import Process
from agent.lab.programs import Ran
from agent.lab.topology import Machine
from agent.lab.world import Privilege

BODY = 64 * 1024
"""Bytes of the file that is fetched, about; all of it is the run's marker."""


@dataclass(frozen=True, slots=True)
class Actor:
    """One workload. `match` is how its node recognises it, `told` the same in words; `address` is empty when it shares
    its node's."""

    name: str
    node: str
    place: Place
    match: str
    told: str
    address: str = ""
    port: int = 0

    @property
    def workload(self) -> str:
        return f"shop/{self.name}"

    def yaml(self) -> str:
        """Its object, not enrolled yet."""
        spec = f"node: {self.node}, serviceAccount: {self.name}, match: {{{self.match}}}"
        if self.address:
            spec += f', address: "{self.address}"'
        if self.port:
            spec += f", ports: [{self.port}]"
        return (
            "apiVersion: culvert/v1\nkind: Workload\n"
            f"metadata: {{namespace: shop, name: {self.name}, labels: {{app: {self.name}}}}}\nspec: {{{spec}}}\n"
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One use of a server by a caller: what is run, and what it must print."""

    caller: Actor
    server: Actor
    argv: list[str]
    expected: bytes
    marked: int
    """Bytes of the marker that it puts on the wire, both directions together."""

    def right(self, ran: Ran) -> bool:
        """Whether the answer is the whole right one."""
        return ran.ok and self.expected in ran.output


@dataclass(frozen=True, slots=True)
class Scene:
    """All of it. `web` and `mail` are the servers; `outsider` a machine that belongs to no mesh."""

    lab: Lab
    mesh: RunningMesh
    machines: dict[str, Machine]
    outsider: Machine
    callers: tuple[Actor, ...]
    web: Actor
    mail: Actor
    marker: bytes

    @property
    def actors(self) -> tuple[Actor, ...]:
        return (*self.callers, self.web, self.mail)

    @property
    def body(self) -> bytes:
        """What the web server serves as `report`."""
        return self.marker * (BODY // len(self.marker))

    @property
    def url(self) -> str:
        return f"http://{where(self.web, self.machines)}:{self.web.port}/report"

    def requests(self) -> Iterator[Request]:
        """Every caller fetches the report, and listens to the server that speaks first."""
        word = self.marker.decode()
        for caller in self.callers:
            yield Request(caller, self.web, programs.get(self.url), self.body, len(self.body))
            said = programs.hear(where(self.mail, self.machines), self.mail.port, word)
            yield Request(caller, self.mail, said, self.marker, 3 * len(self.marker))

    def start(self) -> list[Process]:
        """Start both servers."""
        files = self.lab.directory / "files"
        files.mkdir(mode=0o755)
        (files / "report").write_bytes(self.body)
        (files / "report").chmod(0o644)
        web, mail = where(self.web, self.machines), where(self.mail, self.machines)
        greeter = programs.greeter(mail, self.mail.port, self.marker.decode())
        return [
            self.lab.start("web-server", self.web.place, programs.web_server(web, self.web.port, files)),
            self.lab.start("mail-server", self.mail.place, greeter),
        ]


def where(actor: Actor, machines: dict[str, Machine]) -> str:
    """The address at which an actor is reached: its own, or its machine's."""
    return actor.address or machines[actor.node].address


def build(lab: Lab, marker: bytes, privilege: Privilege) -> Scene:
    """Machines and actors. An ordinary user has one uid and no cgroups, so each actor gets a namespace of its own;
    root shows the other two ways as well."""
    topology = lab.topology
    machines = {name: topology.machine(name) for name in ("web-1", "db-1")}
    centre, outsider = topology.machine("centre"), topology.machine("outsider")

    def pod(name: str, node: str, port: int = 0) -> Actor:
        host = topology.pod(machines[node], name)
        match = f"netns: {host.namespace.name}"
        return Actor(name, node, Place(host.namespace), match, f"namespace {name}", host.address, port)

    def user(name: str, node: str, uid: int, port: int = 0) -> Actor:
        return Actor(name, node, Place(_at(machines, node), uid), f"uid: {uid}", f"uid {uid}", "", port)

    def unit(name: str, node: str, uid: int, port: int = 0) -> Actor:
        cgroup = lab.cgroup(f"{name}.service")
        place = Place(_at(machines, node), uid, cgroup)
        return Actor(name, node, place, f"cgroup: {cgroup}", f"cgroup {name}.service", "", port)

    callers: tuple[Actor, ...]
    if privilege is Privilege.ROOT:
        callers = (user("web", "web-1", 64101), unit("cart", "web-1", 64102), pod("front", "web-1"))
        mail = unit("mail", "db-1", 64201, 2525)
    else:
        callers = (pod("front", "web-1"), pod("cart", "web-1"))
        mail = pod("mail", "db-1", 2525)
    store = pod("store", "db-1", 8080)
    return Scene(lab, make_mesh(lab, centre), machines, outsider, callers, store, mail, marker)


def _at(machines: dict[str, Machine], node: str) -> Namespace:
    return machines[node].namespace
