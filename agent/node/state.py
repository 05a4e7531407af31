"""What a node keeps on disk, so that it starts and carries traffic after a reboot with the centre gone.

    node.pem          the node's own key and certificate chain
    roots.pem         the roots it trusts
    membership.json   which mesh it belongs to, and where its centre is
    view.json, .log   the mesh as last seen (see viewlog)
    ports.json        capture ports by workload, and the namespaces that hold a table of ours
    leaves/*.pem      key and chain of each local identity
    told.json         connections that passed while we were away, as far as they were reported
    capture-off       there while the operator has switched capture off, or tries it
    capture-trial     until when it is tried

node.pem and leaves are sealed where the operator gave a secret (see seal).

A key and its certificate share a file, so that no crash leaves a pair that does not fit. What is damaged is set aside
(see files): with the centre in reach everything but the membership comes back by itself. Blocking; callers use threads.
"""

from pathlib import Path

import msgspec

from agent.leaf import Leaf, read_leaf
from agent.node.enrolment import Ports
from agent.node.files import Files, StateError
from agent.node.seal import CREDENTIAL, Seal, is_sealed
from agent.node.unattended import Told
from agent.node.viewlog import ViewLog
from ca.identity import WorkloadIdentity, parse
from ca.x509 import load_chain


class Membership(msgspec.Struct, frozen=True):
    """What joining gave us. `centre` is HOST:PORT."""

    node: str
    trust_domain: str
    centre: str


class Attempt(msgspec.Struct, frozen=True):
    """Capture is tried until `until`, in seconds since the boot `boot`."""

    boot: str
    until: float


class State:
    """The files below `directory`. `problems` says what was set aside. With a `seal` keys are written so; StateError
    where they are and it does not open them."""

    def __init__(self, directory: Path, seal: Seal | None = None) -> None:
        self.directory = directory
        self._seal = seal
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
        return self._read_leaf("node.pem")

    def save_node_leaf(self, leaf: Leaf) -> None:
        """Replace the node's own certificate and key."""
        self._write_leaf("node.pem", leaf)

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
            leaf = self._read_leaf(name)
            if leaf is not None:
                found[leaf.uri] = leaf
        return found

    def save_leaf(self, leaf: Leaf) -> None:
        """Replace the certificate and key of one identity."""
        self._write_leaf(_leaf_name(leaf.uri), leaf)

    def forget_leaf(self, uri: str) -> None:
        """The last local workload with this identity is gone, and so is its key."""
        self._files.remove(_leaf_name(uri))

    def forget_leaves(self) -> None:
        """Every workload's certificate and key."""
        for name in self._files.names("leaves/*"):
            self._files.remove(name)

    def seal_all(self) -> int:
        """Seal what was written before there was a seal, if there is one now; -> how many files."""
        done = 0
        for name in (*self._files.names("node.pem"), *self._files.names("leaves/*.pem")):
            body = self._files.read(name, bytes)
            if self._seal and body is not None and not is_sealed(body):
                self._files.write(name, self._seal.close(name, body))
                done += 1
        return done

    def _read_leaf(self, name: str) -> Leaf | None:
        return self._files.read(name, lambda body: _split(self._opened(name, body)))

    def _opened(self, name: str, body: bytes) -> bytes:
        if not is_sealed(body):
            return body
        if self._seal is None:
            raise StateError(
                f"{self.directory / name} is sealed, and the secret that opens it was not given: run the agent as its "
                f"service with the credential {CREDENTIAL}, or name the secret with the setting seal; if it is lost, "
                "join again: culvert agent join --force TOKEN"
            )
        return self._seal.open(name, body)

    def _write_leaf(self, name: str, leaf: Leaf) -> None:
        body = leaf.key + leaf.chain
        self._files.write(name, self._seal.close(name, body) if self._seal else body)

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

    def attempt(self) -> Attempt | None:
        """The trial that was begun and not confirmed, over or not."""
        return self._files.read("capture-trial", lambda b: msgspec.json.decode(b, type=Attempt))

    def save_attempt(self, attempt: Attempt | None) -> None:
        """Begin or end it."""
        if attempt:
            self._files.write("capture-trial", msgspec.json.encode(attempt))
        else:
            self._files.remove("capture-trial")

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
