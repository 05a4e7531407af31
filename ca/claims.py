"""What only one object may have: a place on the network, or a mark by which a node recognises a workload."""

from collections.abc import Iterator
from typing import NamedTuple

from ca.resources.kinds import Resource
from ca.resources.node import Node
from ca.resources.workload import Match, Workload


class Claim(NamedTuple):
    """`sort` of claim, `where` its value must be unique, and the value."""

    sort: str
    where: str
    value: str

    def __str__(self) -> str:
        match self.sort:
            case "match":
                return f"{self.value} of node {self.where}"
            case "tunnel":
                return f"the tunnel port {self.value} at {self.where}"
        return f"port {self.value} at {self.where}"


def claims(resource: Resource, address: str) -> Iterator[Claim]:
    """What `resource` claims. `address` is where a workload is reached, empty while its node has not joined."""
    match resource:
        case Workload(spec=spec):
            if spec.match is not None:
                yield Claim("match", spec.node, _recognised(spec.match))
            for port in spec.ports:
                yield Claim("endpoint", address or f"node {spec.node}", str(port))
        case Node(spec=node) if node.address:
            yield Claim("tunnel", node.address, str(node.tunnel_port))


def _recognised(match: Match) -> str:
    """The same text for whatever the kernel cannot tell apart."""
    if match.uid is not None:
        return f"uid {match.uid}"
    if match.cgroup is not None:
        return f"cgroup /{match.cgroup.strip('/')}"
    if match.netns is not None:
        path = match.netns if match.netns.startswith("/") else f"/run/netns/{match.netns}"
        return f"netns {path.replace('/var/run/', '/run/', 1) if path.startswith('/var/run/') else path}"
    return f"address {match.address}"
