"""Becoming a node: what a token, and afterwards a node's certificate, is good for, and what not."""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import trio

from agent.lab.lab import make_lab
from agent.lab.mesh import TRUST_DOMAIN, Node, RunningMesh, make_mesh
from ca import x509
from ca.client import Client, Refusal
from ca.identity import NodeIdentity, WorkloadIdentity
from ca.tokens import JoinToken

T = TypeVar("T")

WORKLOADS = """
apiVersion: culvert/v1
kind: Workload
metadata: {namespace: shop, name: here}
spec: {node: one, serviceAccount: here, match: {uid: 64101}}
---
apiVersion: culvert/v1
kind: Workload
metadata: {namespace: shop, name: there}
spec: {node: two, serviceAccount: there, match: {uid: 64101}}
"""


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    """A centre."""
    lab = make_lab()
    try:
        found = make_mesh(lab, lab.topology.machine("hub"))
        trio.run(found.found)
        yield found
    finally:
        trio.run(lab.close)


async def invited(mesh: RunningMesh, name: str, seconds: float = 600.0) -> tuple[Node, str]:
    """A machine that is no node yet, and its token."""
    return await mesh.invite(name, mesh.lab.topology.machine(name), seconds)


async def refused(mesh: RunningMesh, node: Node, token: str) -> str:
    """Why the node may not join with `token`."""
    ran = await mesh.try_on(node, "agent", "join", token)
    assert not ran.ok
    assert "Traceback" not in ran.errors
    assert list((node.directory / "state").glob("**/*.pem")) == []
    return ran.errors


async def test_a_token_joins_one_node_once(mesh: RunningMesh) -> None:
    node, token = await invited(mesh, "first")
    await mesh.on(node, "agent", "join", token)
    state = node.directory / "state"
    assert {p.name: oct(p.stat().st_mode & 0o777) for p in state.glob("*.pem")} == {
        "node.pem": "0o600",
        "roots.pem": "0o600",
    }
    again = replace(node, directory=_directory(mesh, "thief"))
    assert "used" in await refused(mesh, again, token)


async def test_a_token_expires(mesh: RunningMesh) -> None:
    node, token = await invited(mesh, "late", 1.0)
    await trio.sleep(1.1)  # the centre goes by the wall clock
    assert "expired" in await refused(mesh, node, token)


async def test_a_forged_token_is_refused(mesh: RunningMesh) -> None:
    node, token = await invited(mesh, "forged")
    parsed = JoinToken.parse(token)
    for forged in (
        str(replace(parsed, secret=bytes(32))),
        str(replace(parsed, node="other")),
        str(replace(parsed, root="0" * 64)),
        token[:-8],
        "culvert1.",
    ):
        assert await refused(mesh, node, forged)
    await mesh.on(node, "agent", "join", token)  # the real one still works: refusals did not use it up


async def test_certificates_only_for_workloads_of_the_node(mesh: RunningMesh) -> None:
    nodes = {}
    for name in ("one", "two"):
        node, token = await invited(mesh, name)
        await mesh.on(node, "agent", "join", token)
        nodes[name] = node
    await mesh.operator("apply", "-f", "-", stdin=WORKLOADS)
    client = client_of(mesh, nodes["one"].directory / "state" / "node.pem")
    key = x509.new_key()

    def csr(account: str, namespace: str = "shop", domain: str = TRUST_DOMAIN) -> str:
        return x509.make_csr(key, WorkloadIdentity(domain, namespace, account)).decode()

    async def sign(text: str) -> bytes:
        return (await inside(mesh, nodes["one"], lambda: client.sign(text))).chain.encode()

    chain = await sign(csr("here"))
    assert x509.identity_of(x509.load_chain(chain)[0]) == WorkloadIdentity(TRUST_DOMAIN, "shop", "here")
    for wrong in (
        csr("there"),
        csr("nobody"),
        csr("here", namespace="other"),
        csr("here", domain="other.example"),
        x509.make_csr(key, NodeIdentity(TRUST_DOMAIN, "two")).decode(),
    ):
        with pytest.raises(Refusal):
            await sign(wrong)

    # Classes do not mix: the workload's own certificate opens nothing at the centre, the node's no operator's call.
    thief = Client.over_tls(
        f"{mesh.centre.address}:15012", TRUST_DOMAIN, _roots(nodes["one"]), (chain, x509.key_pem(key))
    )
    for caller in (thief, client):
        with pytest.raises(Exception, match=r"operator|certificate|refused|alert") as caught:
            await inside(mesh, nodes["one"], caller.status)
        assert type(caught.value).__module__.startswith("ca.")


def client_of(mesh: RunningMesh, file: Path) -> Client:
    """A caller with the key and chain of a file."""
    credentials = file.read_bytes()
    key, chain = x509.load_key(credentials), x509.load_chain(credentials)
    roots = (file.parent / "roots.pem").read_bytes()
    return Client.over_tls(f"{mesh.centre.address}:15012", TRUST_DOMAIN, roots, (x509.pem(*chain), x509.key_pem(key)))


def _roots(node: Node) -> bytes:
    return (node.directory / "state" / "roots.pem").read_bytes()


def _directory(mesh: RunningMesh, name: str) -> Path:
    directory = mesh.lab.directory / name
    directory.mkdir()
    return directory


async def inside(mesh: RunningMesh, node: Node, use: Callable[[], Awaitable[T]]) -> T:
    """`use` run in the node's network namespace, under an event loop of its own."""
    return await trio.to_thread.run_sync(lambda: node.machine.namespace.run(lambda: trio.run(use)))
