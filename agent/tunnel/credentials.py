"""The certificates a worker proves its workloads' identities with, and the roots it trusts."""

from collections.abc import Callable
from dataclasses import dataclass

import trio
from OpenSSL import SSL

from agent.snapshot import Snapshot
from ca.identity import WorkloadIdentity, parse
from ca.revoked import Revoked
from ca.tls import by_server_name, context
from ca.x509 import load_chain, serial

ALPN = b"h2"


@dataclass(slots=True)
class Arrival:
    """Goes with a handshake on 15008: the address dialled, what was asked for there, and whom we answered as. `awaited`
    is who was meant when it is a local identity that has no certificate yet."""

    address: str
    asked: str = ""
    identity: WorkloadIdentity | None = None
    awaited: WorkloadIdentity | None = None


class Credentials:
    """Contexts by local identity. A new certificate makes new contexts; tunnels in being keep theirs."""

    def __init__(self, view: Callable[[], Snapshot]) -> None:
        """`view` gives the current snapshot: it tells which identities have a given address."""
        self._view = view
        self._roots = b""
        self._leaves: dict[WorkloadIdentity, tuple[bytes, bytes]] = {}
        self._client: dict[WorkloadIdentity, SSL.Context] = {}
        self._server: dict[WorkloadIdentity, SSL.Context] = {}
        self._names: dict[str, WorkloadIdentity] = {}
        self._front: SSL.Context | None = None
        self._awaited: dict[WorkloadIdentity, trio.Event] = {}

    @property
    def revoked(self) -> Revoked:
        """Which certificates and identities are no good, at this moment."""
        return self._view().revoked

    def trust(self, roots: bytes) -> None:
        """Trust these roots (PEM) from now on."""
        self._roots = roots
        self._front = None
        for identity, leaf in self._leaves.items():
            self._build(identity, leaf)

    def put(self, uri: str, chain: bytes, key: bytes) -> str:
        """Use this certificate for new tunnels of `uri`; -> its serial, as Revocations have it."""
        identity = parse(uri)
        if not isinstance(identity, WorkloadIdentity):
            raise ValueError(f"{uri} is no workload's identity")
        self._leaves[identity] = (chain, key)
        self._names[identity.sni] = identity
        self._build(identity, (chain, key))
        if (event := self._awaited.pop(identity, None)) is not None:
            event.set()
        return serial(load_chain(chain)[0])

    def forget(self, uri: str) -> None:
        """No new tunnels as `uri`."""
        for identity in [i for i in self._leaves if str(i) == uri]:
            for table in (self._leaves, self._client, self._server):
                table.pop(identity, None)
            self._names.pop(identity.sni, None)

    def dialling(self, identity: WorkloadIdentity) -> SSL.Context | None:
        """The context to dial with as `identity`; None while there is no certificate."""
        return self._client.get(identity)

    async def certified(self, identity: WorkloadIdentity) -> None:
        """Wait until there is a certificate for it."""
        if identity not in self._leaves:
            await self._awaited.setdefault(identity, trio.Event()).wait()

    def answering(self) -> SSL.Context:
        """The context for arriving tunnels: it answers as whom the caller asks for (see hbone: SNI, else address)."""
        if self._front is None:
            self._front = context(load_chain(self._roots), server=True, alpn=ALPN)
            by_server_name(self._front, self._choose)
        return self._front

    def _choose(self, name: str | None, tag: object) -> SSL.Context | None:
        assert isinstance(tag, Arrival)
        tag.asked = f"server name {name}" if name is not None else f"address {tag.address} without a server name"
        identity = self._names.get(name) if name is not None else self._at(tag.address)
        tag.identity = identity
        chosen = self._server.get(identity) if identity else None
        tag.awaited = None if chosen else identity or self._uncertified(name)
        return chosen

    def _uncertified(self, name: str | None) -> WorkloadIdentity | None:
        """Whom a server name means that is enrolled here and whose certificate is on its way."""
        view = self._view()
        if view.mesh is None:
            return None
        domain = view.mesh.spec.trust_domain
        missing = {workload.identity(domain) for workload in view.here.values()} - self._leaves.keys()
        return next((identity for identity in missing if identity.sni == name), None)

    def _at(self, address: str) -> WorkloadIdentity | None:
        """Whom a caller without a server name means: the one local identity at the address, if there is but one."""
        view = self._view()
        if view.mesh is None:
            return None
        found = {
            view.here[key].identity(view.mesh.spec.trust_domain)
            for key in view.by_address.get(address, ())
            if key in view.here
        }
        return found.pop() if len(found) == 1 else None

    def _build(self, identity: WorkloadIdentity, leaf: tuple[bytes, bytes]) -> None:
        roots = load_chain(self._roots)
        self._client[identity] = context(roots, leaf, server=False, alpn=ALPN)
        self._server[identity] = context(roots, leaf, server=True, alpn=ALPN)
