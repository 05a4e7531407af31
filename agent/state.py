"""What a node keeps on disk, so that it starts and carries traffic after a reboot with the centre gone.

    node.pem          the node's own key and certificate chain
    roots.pem         the roots it trusts
    membership.json   which mesh it belongs to, and where its centre is
    view.json         the mesh as last seen
    ports.json        capture ports by workload, and the namespaces that hold a table of ours
    leaves/*.pem      key and chain of each local identity
    capture-off       there while the operator has switched capture off

A key and its certificate share a file, so that no crash leaves a pair that does not fit. Every file is 0600, is
replaced whole (written beside, fsync, rename, fsync of the folder) and begins with a line that has the SHA-256 of the
rest; PEM readers skip that line. A file that does not hold what its line says is renamed to NAME.damaged, reported, and
counts as absent: with the centre in reach everything but the membership comes back by itself.

Blocking; callers run it in threads.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import immutables
import msgspec

from agent.enrolment import Ports
from agent.leaf import Leaf, read_leaf
from agent.snapshot import Snapshot
from agent.view import MeshView, known_kinds
from ca.contract import LocalMatch
from ca.identity import IdentityError, WorkloadIdentity, parse
from ca.resources.kinds import decode_known, encode
from ca.resources.metadata import Key
from ca.x509 import CertificateError, load_chain

_T = TypeVar("_T")
_HEAD = b"# culvert 1 sha256="


class StateError(Exception):
    """The state directory cannot be used; the message says why and what to do."""


class Membership(msgspec.Struct, frozen=True):
    """What joining gave us. `centre` is HOST:PORT."""

    node: str
    trust_domain: str
    centre: str


class _SavedView(msgspec.Struct, frozen=True):
    node: str
    revision: int
    incarnation: str
    kinds: list[str]
    resources: list[msgspec.Raw]
    matches: list[LocalMatch]


class State:
    """The files below `directory`, which is made (0700) if it is not there. `problems` says what was set aside."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.problems: list[str] = []
        self._writing = threading.Lock()
        try:
            (directory / "leaves").mkdir(mode=0o700, parents=True, exist_ok=True)
            directory.chmod(0o700)
            for leftover in (*directory.glob("*.new"), *directory.glob("leaves/*.new")):
                leftover.unlink()
        except OSError as error:
            raise StateError(
                f"state directory {directory}: {error.strerror}; run as root, or choose another with state_dir"
            ) from error

    def membership(self) -> Membership | None:
        """Which mesh, and as whom; None before `culvert agent join`."""
        return self._read("membership.json", lambda b: msgspec.json.decode(b, type=Membership))

    def save_membership(self, membership: Membership) -> None:
        """Written last when joining: with it, the rest counts."""
        self._write("membership.json", msgspec.json.encode(membership))

    def node_leaf(self) -> Leaf | None:
        """The node's own certificate."""
        return self._read("node.pem", _split)

    def save_node_leaf(self, leaf: Leaf) -> None:
        """Replace the node's own certificate and key."""
        self._write("node.pem", leaf.key + leaf.chain)

    def roots(self) -> bytes | None:
        """PEM of the roots to trust."""
        return self._read("roots.pem", _chain)

    def save_roots(self, pem: bytes) -> None:
        """Replace the roots."""
        self._write("roots.pem", pem)

    def leaves(self) -> dict[str, Leaf]:
        """Workload certificates by identity, expired ones too."""
        found = {}
        for path in sorted((self.directory / "leaves").glob("*.pem")):
            leaf = self._read(f"leaves/{path.name}", _split)
            if leaf is not None:
                found[leaf.uri] = leaf
        return found

    def save_leaf(self, leaf: Leaf) -> None:
        """Replace the certificate and key of one identity."""
        self._write(_leaf_name(leaf.uri), leaf.key + leaf.chain)

    def forget_leaf(self, uri: str) -> None:
        """The last local workload with this identity is gone, and so is its key."""
        self._remove(_leaf_name(uri))

    def view(self, node: str) -> MeshView | None:
        """The mesh as last seen by this `node`. What a version with other kinds saved may have gaps: it holds until
        the centre answers, but without an incarnation, which makes the centre send everything again."""

        def decode(body: bytes) -> MeshView | None:
            saved = msgspec.json.decode(body, type=_SavedView)
            if saved.node != node:
                return None
            snapshot = Snapshot(node).apply(saved.revision, decode_known(saved.resources), ())
            matches = immutables.Map({Key("Workload", m.namespace, m.name): m.match for m in saved.matches})
            if saved.kinds != known_kinds():
                return MeshView(snapshot, matches, "")
            return MeshView(snapshot, matches, saved.incarnation)

        return self._read("view.json", decode)

    def save_view(self, view: MeshView) -> None:
        """Replace the view."""
        saved = _SavedView(
            view.snapshot.node,
            view.snapshot.revision,
            view.incarnation,
            known_kinds(),
            [msgspec.Raw(encode(r)) for r in view.resources()],
            [LocalMatch(k.namespace, k.name, m) for k, m in view.matches.items()],
        )
        self._write("view.json", msgspec.json.encode(saved))

    def ports(self) -> Ports:
        """The ports given out."""
        return self._read("ports.json", lambda b: msgspec.json.decode(b, type=Ports)) or Ports()

    def save_ports(self, ports: Ports) -> None:
        """To be on disk before any rule refers to a new port."""
        self._write("ports.json", msgspec.json.encode(ports))

    def capture_off(self) -> bool:
        """Whether the operator has switched capture off."""
        return (self.directory / "capture-off").exists()

    def set_capture_off(self, off: bool) -> None:
        """Remember it across restarts."""
        if off:
            self._write("capture-off", b"")
        else:
            self._remove("capture-off")

    def forget_all(self) -> None:
        """Leave the mesh: every key and all that was known."""
        names = [p.name for p in self.directory.iterdir() if p.is_file()]
        leaves = [f"leaves/{p.name}" for p in (self.directory / "leaves").iterdir()]
        # The membership first: a half-forgotten node has not joined.
        for name in ("membership.json", *leaves, *names):
            self._remove(name)

    def _read(self, name: str, decode: Callable[[bytes], _T]) -> _T | None:
        path = self.directory / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path}: cannot be read: {error.strerror}; run as root") from error
        head, newline, body = data.partition(b"\n")
        try:
            if not newline or head != _HEAD + hashlib.sha256(body).hexdigest().encode():
                raise ValueError("its checksum does not fit")
            return decode(body)
        except (ValueError, CertificateError, IdentityError) as error:
            with contextlib.suppress(OSError):
                path.replace(path.with_name(path.name + ".damaged"))
            self.problems.append(f"{path} is damaged ({error}): set aside as {path.name}.damaged")
            return None

    def _write(self, name: str, body: bytes) -> None:
        path = self.directory / name
        beside = path.with_name(path.name + ".new")
        with self._writing:
            try:
                fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                with open(fd, "wb") as file:
                    os.fchmod(fd, 0o600)
                    file.write(_HEAD + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                    file.flush()
                    os.fsync(fd)
                beside.replace(path)
                _sync(path.parent)
            except OSError as error:
                raise StateError(f"{path}: cannot be written: {error.strerror}") from error

    def _remove(self, name: str) -> None:
        path = self.directory / name
        with self._writing:
            try:
                path.unlink(missing_ok=True)
                _sync(path.parent)
            except OSError as error:
                raise StateError(f"{path}: cannot be removed: {error.strerror}") from error


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


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
