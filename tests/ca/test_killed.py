"""A centre killed with SIGKILL at every stage of every commit of its life: nothing that it acknowledged is lost,
nothing is half done, and whoever was not answered can say it again.

How many commits there are comes from the store itself, so that no step can be forgotten.
"""

import contextlib
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
import trio

from ca import registry, x509
from ca.authority import Authority
from ca.client import Client, ClientError, Refusal
from ca.contract import ApplyRequest, DeleteRequest, JoinRequest, LabelRequest, ResourceName, TokenRequest
from ca.identity import Identity, NodeIdentity, OperatorIdentity, WorkloadIdentity
from ca.resources.kinds import Resource, decode, encode
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Key, Metadata
from ca.resources.node import Node
from ca.resources.revocation import Revocation, RevocationSpec
from ca.revoking import restored
from ca.store import Stage
from ca.store.sqlite import SqliteStore
from ca.tokens import JoinToken
from tests.ca.objects import workload

TD = "shop.example"
A, WEB, ADMIN = NodeIdentity(TD, "a"), WorkloadIdentity(TD, "shop", "web"), OperatorIdentity(TD, "admin")
REVOKED = Metadata("web-is-out")
ENROLLED = workload("web", uid=1, labels={"mesh": "on"})


class DiedError(Exception):
    """The centre was killed before it answered."""


def _start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ca.mortal", *arguments],
        cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip


class Life:
    """One mesh, and what its centre has acknowledged so far."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        with SqliteStore.open(directory, create=True) as store:
            self.roots = x509.pem(*Authority.create(store, store.keys, TD, datetime.now(UTC)).roots)
        self.tokens: list[JoinToken] = []
        self.node: tuple[bytes, bytes] | None = None
        self.issuer = ""
        self.serials: dict[str, str] = {}
        self.objects: dict[Key, Resource] = {}
        self.asked: Resource | None = None
        self.gone: set[Key] = set()
        self._process: subprocess.Popen[str] | None = None

    @contextlib.asynccontextmanager
    async def centre(self, number: int = 0, stage: str = "") -> AsyncIterator[None]:
        """Its centre for the block, dying at that stage of that commit; DiedError when it has."""
        process = self._process = _start(str(self.directory), self.address, str(number), stage)
        try:
            await self.line("ready")
            yield
        except ClientError as error:
            if isinstance(error, Refusal) or process.wait(10) != -signal.SIGKILL:
                raise
            raise DiedError from error
        finally:
            process.terminate()
            process.wait(10)
            assert process.stdout
            process.stdout.close()

    async def line(self, word: str) -> str:
        """What the centre says next, after `word`."""
        assert self._process
        assert self._process.stdout
        with trio.fail_after(20):
            said = await trio.to_thread.run_sync(self._process.stdout.readline)
        if not said:
            raise ClientError("the centre is gone")
        assert said.startswith(word)
        return said.removeprefix(word).strip()

    def renew_issuer(self) -> None:
        assert self._process
        self._process.send_signal(signal.SIGUSR1)

    @property
    def root(self) -> Client:
        """Root at the centre's machine."""
        return Client.at_socket(self.directory / "central.sock")

    @property
    def a(self) -> Client:
        """Node a."""
        return Client.over_tls(self.address, TD, self.roots, self.node)

    def given(self, chain: str, identity: Identity) -> tuple[bytes, str]:
        """A certificate was acknowledged; -> its PEM and its issuer."""
        leaf, issuing, *_ = x509.load_chain(chain.encode())
        assert x509.identity_of(leaf) == identity
        leaf.verify_directly_issued_by(issuing)
        self.serials[x509.serial(leaf)] = str(identity)
        return chain.encode(), x509.fingerprint(issuing)

    async def put(self, resource: Resource) -> None:
        await self.root.apply(ApplyRequest([msgspec.Raw(encode(resource))]))
        if not isinstance(resource, Revocation):  # those come back with more than was said
            self.objects[resource.key] = resource


# What is asked of it, one after another. Each can be said again when no answer came.


async def found(life: Life) -> None:
    await life.put(Mesh(Metadata("mesh"), MeshSpec(TD)))


async def invite(life: Life) -> None:
    life.tokens.append(JoinToken.parse((await life.root.create_token(TokenRequest("a"))).token))


async def join(life: Life) -> None:
    key = x509.new_key()
    csr = x509.make_csr(key, A).decode()

    async def once() -> str:
        token = life.tokens[-1]
        return (await Client.joining(token).join(JoinRequest(str(token), csr, "10.0.0.1"))).chain

    try:
        chain = await once()
    except Refusal as refusal:
        if "the token was used at" not in str(refusal):
            raise
        # Its answer reached nobody: as with any lost answer, the way back is a new token.
        await invite(life)
        chain = await once()
    life.node = life.given(chain, A)[0], x509.key_pem(key)


async def register(life: Life) -> None:
    await life.put(workload("web", uid=1))


async def enrol(life: Life) -> None:
    life.asked = ENROLLED
    await life.root.label(LabelRequest(ResourceName("Workload", "web", "shop"), {"mesh": "on"}))
    life.objects[ENROLLED.key] = ENROLLED


async def sign(life: Life) -> None:
    chain = (await life.a.sign(x509.make_csr(x509.new_key(), WEB).decode())).chain
    _, issuer = life.given(chain, WEB)
    assert life.issuer in ("", issuer)


async def renew(life: Life) -> None:
    key = x509.new_key()
    life.node = life.given((await life.a.renew(x509.make_csr(key, A).decode())).chain, A)[0], x509.key_pem(key)


async def renew_issuer(life: Life) -> None:
    life.renew_issuer()
    life.issuer = await life.line("issuer")


async def make_operator(life: Life) -> None:
    life.given((await life.root.sign_operator(x509.make_csr(x509.new_key(), ADMIN).decode())).chain, ADMIN)


async def revoke(life: Life) -> None:
    await life.put(Revocation(REVOKED, RevocationSpec(str(WEB), reason="stolen")))
    spec = (await _revocation(life)).spec
    assert spec.identity == str(WEB)
    assert {s for s, uri in life.serials.items() if uri == str(WEB)} <= set(spec.serials)


async def be_refused(life: Life) -> None:
    with pytest.raises(Refusal, match=r"is revoked \(stolen\)"):
        await sign(life)


async def restore(life: Life) -> None:
    revocation = await _revocation(life)
    if revocation.spec.identity:  # else it was done already, and nobody heard of it
        rest = restored(revocation)
        assert rest
        await life.put(rest)


async def forgive(life: Life) -> None:
    key = Key("Revocation", "", REVOKED.name)
    try:
        await life.root.delete(DeleteRequest([ResourceName(key.kind, key.name)]))
    except Refusal as refusal:
        if "there is none" not in str(refusal):
            raise
    life.gone.add(key)


async def expel(life: Life) -> None:
    await life.put(Revocation(Metadata("a-is-out"), RevocationSpec(str(A), reason="lost")))
    with pytest.raises(Refusal, match=r"is revoked \(lost\)"):
        await renew(life)


STEPS: tuple[Callable[[Life], Awaitable[None]], ...] = (
    found, invite, join, register, enrol, sign, renew, renew_issuer, sign, renew, make_operator,
    revoke, be_refused, restore, sign, forgive, expel,
)  # fmt: skip


async def _revocation(life: Life) -> Revocation:
    (raw,) = (await life.root.list("Revocation", "", REVOKED.name)).items
    found = decode(raw)
    assert isinstance(found, Revocation)
    return found


def look(life: Life) -> None:
    """At the disk of a centre that does not run: it is whole, and has all that was acknowledged."""
    with contextlib.closing(sqlite3.connect(life.directory / "culvert.db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    with SqliteStore.open(life.directory) as store:
        authority = Authority.open(store, store.keys)
        contents, issued, tokens = store.contents(), store.certificates(), store.tokens()
        state = registry.restore(store.meta()["incarnation"], contents)
        signing = [i.fingerprint for i in store.issuers() if i.role == "issuing" and not i.retired]
    # Nothing half done.
    assert signing == [x509.fingerprint(authority.issuer.cert)]
    assert {r.revision for r in contents.resources} <= set(range(contents.revision + 1))
    assert {c.revision for c in contents.changes} == set(range(1, contents.revision + 1))
    burnt = {t.used for t in tokens if t.used is not None}
    assert burnt <= {c.issued for c in issued if c.identity == str(A)}
    node = state.objects.get(Key("Node", "", "a"))
    assert bool(tokens) is isinstance(node, Node)
    assert not isinstance(node, Node) or bool(node.spec.address) is bool(burnt)
    # Nothing lost.
    assert life.serials.keys() <= {c.serial for c in issued}
    assert {t.digest for t in life.tokens} <= {t.digest for t in tokens}
    for key, resource in life.objects.items():
        assert state.objects[key] in (resource, life.asked)  # what was asked last may be done without an answer
    assert not life.gone & set(state.objects)
    assert life.issuer in ("", *signing)


async def live(life: Life, number: int = 0, stage: str = "") -> bool:
    """Through all the steps, a death at that stage of that commit included; whether there was one."""
    rest = list(STEPS)

    async def go_on() -> None:
        while rest:
            await rest[0](life)
            del rest[0]

    try:
        async with life.centre(number, stage):
            await go_on()
    except DiedError:
        look(life)
        async with life.centre():
            await go_on()
        died = True
    else:
        died = False
    look(life)
    return died


@pytest.mark.slow
@pytest.mark.parametrize("stage", [s.value for s in Stage])
async def test_killed_at_every_commit(tmp_path: Path, stage: str) -> None:
    quiet = Life(tmp_path / "quiet")
    assert not await live(quiet)
    counted = (quiet.directory / "commits").read_text().split("\n")
    commits = sum(line.endswith(f" {stage}") for line in counted)
    assert commits >= len(STEPS) - 1  # all but one of the steps write, and the centre signs for itself
    for number in range(1, commits + 1):
        life = Life(tmp_path / str(number))
        assert await live(life, number, stage), f"it outlived commit {number}"
        reached = (life.directory / "commits").read_text().split("\n")
        assert f"{number} {stage}" in reached
