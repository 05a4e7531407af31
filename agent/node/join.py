"""Joining a mesh: a token, once, for a certificate of the node's own. The key is made here and never leaves."""

import socket

import trio

from agent.leaf import Leaf, read_leaf, request
from agent.node.state import Membership, State
from ca import endpoint, tls
from ca.channel import ChannelError, connect
from ca.client import Client, ClientError
from ca.contract import JoinRequest
from ca.identity import CentralIdentity, NodeIdentity
from ca.resources.workload import canonical_address
from ca.tokens import JoinToken, TokenError
from ca.x509 import CertificateError


class JoinError(Exception):
    """The node has not joined; the message says why and what to do."""


async def join(
    state: State, text: str, *, centre: str = "", address: str = "", tunnel_port: int = 15008, force: bool = False
) -> Membership:
    """Join with a token and write all that `culvert agent run` needs. `centre` is HOST:PORT to be used instead of the
    token's, `address` ours instead of the one from which this machine reaches the centre. JoinError; the token is then
    still good, unless the message says otherwise."""
    if (before := state.membership()) and not force:
        raise JoinError(
            f"this machine is node {before.node} of {before.trust_domain} already; `culvert agent leave` first, or "
            "give --force to replace its certificate"
        )
    try:
        token = JoinToken.parse(text)
        if centre:
            token = JoinToken(centre, token.root, token.node, token.secret)
        host, port = endpoint.split(token.address)
    except (TokenError, ValueError) as error:
        raise JoinError(str(error)) from error
    address = await _own_address(address, host, port)
    try:
        identity = NodeIdentity(await _trust_domain(token, host, port), token.node)
        key, csr = request(identity)
        answer = await Client.joining(token).join(JoinRequest(str(token), csr.decode(), address, tunnel_port))
        leaf = read_leaf(answer.chain.encode(), key)
    except (ClientError, ChannelError, CertificateError) as error:
        raise JoinError(str(error)) from error
    if leaf.uri != str(identity):
        raise JoinError(f"the centre signed {leaf.uri} instead of {identity}; have a new token made")
    membership = Membership(answer.node, answer.trust_domain, token.address)
    await trio.to_thread.run_sync(_save, state, membership, leaf, answer.roots.encode())
    return membership


async def _trust_domain(token: JoinToken, host: str, port: int) -> str:
    """Whose centre it is: the token does not say, and the request must name the whole identity."""
    async with await connect(host, port, tls.pinned_context(token.root), expect=CentralIdentity) as channel:
        assert channel.peer is not None
        return channel.peer.trust_domain


async def _own_address(given: str, host: str, port: int) -> str:
    try:
        found = given or await trio.to_thread.run_sync(source_towards, host, port)
        return canonical_address(found)
    except OSError as error:
        raise JoinError(f"no way leads from this machine to the centre at {host}: {error.strerror}") from error
    except ValueError as error:
        raise JoinError(f"{error}; say with --address where the other machines reach this one") from error


def source_towards(host: str, port: int) -> str:
    """Our address on the way to `host`. Asks the kernel (and DNS, for a name); nothing is sent to the host."""
    family, kind, proto, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, proto) as sock:
        sock.connect(where)
        return str(sock.getsockname()[0])


def _save(state: State, membership: Membership, leaf: Leaf, roots: bytes) -> None:
    state.forget_leaves()  # of an earlier membership; perhaps sealed with a secret that is lost
    state.save_node_leaf(leaf)
    state.save_roots(roots)
    state.save_membership(membership)
