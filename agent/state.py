"""What a node keeps on disk, so that it starts and carries traffic after a reboot with the centre gone.

    node.pem          the node's own key and certificate chain
    roots.pem         the roots it trusts
    membership.json   which mesh it belongs to, and where its centre is
    view.json, .log   the mesh as last seen (see viewlog)
    ports.json        capture ports by workload, and the namespaces that hold a table of ours
    leaves/*.pem      key and chain of each local identity
    told.json         connections that passed while we were away, as far as they were reported
    capture-off       there while the operator has switched capture off

A key and its certificate share a file, so that no crash leaves a pair that does not fit. What is damaged is set aside
(see files): with the centre in reach everything but the membership comes back by itself. Blocking; callers use threads.
"""

from pathlib import Path

import msgspec

from agent.enrolment import Ports
from agent.files import Files
from agent.leaf import Leaf, read_leaf
from agent.unattended import Told
from agent.viewlog import ViewLog
from ca.identity import WorkloadIdentity, parse
from ca.x509 import load_chain


class Membership(msgspec.Struct, frozen=True):
    """What joining gave us. `centre` is HOST:PORT."""

    node: str
    trust_domain: str
    centre: str


class State:
    """The files below `directory`. `problems` says what was set aside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._files = Files(directory, "leaves")
        self.problems = self._files.problems
        self.views = ViewLog(self._files)

    def membership(self) -> Membership | None:
        """Which mesh, and as whom; None before `culvert agent join`."""
        return self._files.read("membership.json", lambda b: msgspec.json.decode(b, type=Membership))

    def save_membership(self, membership: Membership) -> None:
        """Written last when joining: with it, the rest counts."""
        self._files.write("membership.json", msgspec.json.encode(membership))

    def node_leaf(self) -> Leaf | None:
        """The node's own certificate."""
        return self._files.read("node.pem", _split)

    def save_node_leaf(self, leaf: Leaf) -> None:
        """Replace the node's own certificate and key."""
        self._files.write("node.pem", leaf.key + leaf.chain)

    def roots(self) -> bytes | None:
        """PEM of the roots to trust."""
        return self._files.read("roots.pem", _chain)

    def save_roots(self, pem: bytes) -> None:
        """Replace the roots."""
        self._files.write("roots.pem", pem)

    def leaves(self) -> dict[str, Leaf]:
        """Workload certificates by identity, expired ones too."""
        found = {}
        for name in self._files.names("leaves/*.pem"):
            leaf = self._files.read(name, _split)
            if leaf is not None:
                found[leaf.uri] = leaf
        return found

    def save_leaf(self, leaf: Leaf) -> None:
        """Replace the certificate and key of one identity."""
        self._files.write(_leaf_name(leaf.uri), leaf.key + leaf.chain)

    def forget_leaf(self, uri: str) -> None:
        """The last local workload with this identity is gone, and so is its key."""
        self._files.remove(_leaf_name(uri))

    def ports(self) -> Ports:
        """The ports given out."""
        return self._files.read("ports.json", lambda b: msgspec.json.decode(b, type=Ports)) or Ports()

    def save_ports(self, ports: Ports) -> None:
        """To be on disk before any rule refers to a new port."""
        self._files.write("ports.json", msgspec.json.encode(ports))

    def told(self) -> Told:
        """What was reported of the time without us."""
        return self._files.read("told.json", lambda b: msgspec.json.decode(b, type=Told)) or Told()

    def save_told(self, told: Told) -> None:
        """So that it is reported once."""
        self._files.write("told.json", msgspec.json.encode(told))

    def capture_off(self) -> bool:
        """Whether the operator has switched capture off."""
        return self._files.exists("capture-off")

    def set_capture_off(self, off: bool) -> None:
        """Remember it across restarts."""
        if off:
            self._files.write("capture-off", b"")
        else:
            self._files.remove("capture-off")

    def forget_all(self) -> None:
        """Leave the mesh: every key and all that was known."""
        # The membership first: a half-forgotten node has not joined.
        for name in ("membership.json", *self._files.names("leaves/*"), *self._files.names("*")):
            self._files.remove(name)


def _leaf_name(uri: str) -> str:
    identity = parse(uri)
    if not isinstance(identity, WorkloadIdentity):
        raise ValueError(f"{uri} is no workload's identity")
    return f"leaves/{identity.sni.partition('.')[0]}.pem"


def _split(body: bytes) -> Leaf:
    end = b"-----END PRIVATE KEY-----\n"
    key, found, chain = body.partition(end)
    return read_leaf(chain, key + found)


def _chain(body: bytes) -> bytes:
    load_chain(body)
    return body
