"""Against a real centre on loopback."""

import socket
import stat

import pytest

from agent.leaf import read_leaf, request
from agent.node.join import JoinError, join, source_towards
from agent.node.state import Membership, State
from ca.client import Client
from ca.contract import TokenRequest
from ca.identity import parse
from ca.tokens import JoinToken
from tests.ca.running import Running, running

ADDRESS = "10.0.0.1"


@pytest.fixture
async def centre(tmp_path):
    async with running(tmp_path / "centre") as centre:
        yield centre


@pytest.fixture
def state(tmp_path):
    return State(tmp_path / "agent")


async def token(centre: Running, node: str = "web-1", ttl: float = 60.0) -> str:
    return (await centre.operator().create_token(TokenRequest(node, ttl))).token


async def test_joined(centre, state):
    member = await join(state, await token(centre), address=ADDRESS, tunnel_port=15009)
    assert member == Membership("web-1", "shop.example", centre.address)
    again = State(state.directory)
    assert again.membership() == member
    leaf = again.node_leaf()
    assert leaf.uri == "spiffe://shop.example/node/web-1"
    assert again.roots() == centre.roots
    status = await centre.operator().status()
    assert [(n.name, n.address) for n in status.nodes] == [("web-1", ADDRESS)]
    key, csr = request(parse(leaf.uri))
    client = Client.over_tls(member.centre, member.trust_domain, again.roots(), (leaf.chain, leaf.key))
    assert read_leaf((await client.renew(csr.decode())).chain.encode(), key).uri == leaf.uri
    assert {stat.S_IMODE(p.stat().st_mode) for p in state.directory.rglob("*") if p.is_file()} == {0o600}


async def test_a_second_time_only_by_force(centre, state):
    await join(state, await token(centre), address=ADDRESS)
    second = await token(centre, "web-2")
    with pytest.raises(JoinError, match=r"node web-1 of shop\.example already.*--force"):
        await join(state, second, address=ADDRESS)
    assert (await join(state, second, address="10.0.0.2", force=True)).node == "web-2"


async def test_a_token_works_once(centre, state, tmp_path):
    text = await token(centre)
    await join(state, text, address=ADDRESS)
    with pytest.raises(JoinError, match="was used"):
        await join(State(tmp_path / "other"), text, address=ADDRESS)


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (lambda t: "nonsense", "no join token"),
        (lambda t: str(t)[:-20], "damaged"),
        (lambda t: str(JoinToken.new(t.address, t.root, t.node)), "token"),
        (lambda t: str(JoinToken(t.address, "0" * 64, t.node, t.secret)), "leads to no root"),
        (lambda t: str(JoinToken("127.0.0.1:1", t.root, t.node, t.secret)), "cannot be reached"),
    ],
)
async def test_what_is_refused_leaves_nothing(centre, state, change, cause):
    real = JoinToken.parse(await token(centre))
    with pytest.raises(JoinError, match=cause):
        await join(state, change(real), address=ADDRESS)
    assert state.membership() is None
    assert state.node_leaf() is None
    await join(state, str(real), address=ADDRESS)  # a forged one has not used up the true one


async def test_another_way_to_the_centre(centre, state):
    real = JoinToken.parse(await token(centre))
    wrong = JoinToken("127.0.0.1:1", real.root, real.node, real.secret)
    member = await join(state, str(wrong), centre=centre.address, address=ADDRESS)
    assert member.centre == centre.address


async def test_an_address_that_nobody_else_can_dial(centre, state):
    with pytest.raises(JoinError, match=r"127\.0\.0\.1 is no address that another node can reach; say with --address"):
        await join(state, await token(centre))


def test_our_address_on_the_way():
    assert source_towards("127.0.0.1", 15012) == "127.0.0.1"
    if socket.has_ipv6:
        assert source_towards("::1", 15012) == "::1"
