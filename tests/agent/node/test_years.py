"""Three years of a mesh in seconds: agents that renew on schedule, a centre whose issuing certificate changes.

The centre is off for a week each spring, and is opened anew from its disk after it. Whoever holds a certificate is, at
every look, one whom a peer accepts by the date that the look has.
"""

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.x509 import Certificate
from OpenSSL import crypto

from agent.leaf import Leaf, read_leaf, request
from agent.node.renewal import Schedule
from ca import x509
from ca.authority import Authority, Lives
from ca.centre import Centre
from ca.identity import NodeIdentity, WorkloadIdentity, parse
from ca.keeper import Keeper
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Metadata
from ca.store.sqlite import SqliteStore
from tests.ca.objects import node, workload

TD = "shop.example"
START = datetime(2030, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
LIVES = Lives(workload=20 * DAY, node=20 * DAY)


class Agent:
    """What an agent does for its identities, without the wire in between."""

    def __init__(self, name: str, workload: str) -> None:
        self.node = NodeIdentity(TD, name)
        self.schedule = Schedule(random.Random(name))
        self.schedule.want([str(self.node), str(WorkloadIdentity(TD, "shop", workload))])

    async def renew(self, centre: Centre, now: float) -> int:
        """Whatever is due; -> how many were asked for."""
        due = self.schedule.take(now, now)
        for uri in due:
            key, csr = request(identity := parse(uri))
            ask = centre.renew if identity == self.node else centre.sign
            self.schedule.issued(read_leaf((await ask(self.node, csr.decode())).chain.encode(), key), now)
        return len(due)

    @property
    def leaves(self) -> list[Leaf]:
        return list(self.schedule.leaves().values())


def accepted(leaf: Leaf, root: Certificate, now: datetime) -> None:
    """As OpenSSL would at `now`, with nothing but the root; raises if not."""
    trusted = crypto.X509Store()
    trusted.add_cert(crypto.X509.from_cryptography(root))
    trusted.set_time(now)
    first, *rest = (crypto.X509.from_cryptography(c) for c in x509.load_chain(leaf.chain))
    crypto.X509StoreContext(trusted, first, rest).verify_certificate()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    with SqliteStore.open(tmp_path / "dir", create=True) as store:
        Authority.create(store, store.keys, TD, START, LIVES)
        yield store


async def test_nothing_ends_in_three_years(store: SqliteStore) -> None:
    now = START

    def opened() -> tuple[Centre, Keeper]:
        centre = Centre(store, Authority.open(store, store.keys, LIVES), advertise="x:1", clock=lambda: now.timestamp())
        return centre, Keeper(centre)

    centre, keeper = opened()
    root = centre.authority.root
    web, api = workload("web", on="a", labels={"mesh": "on"}), workload("api", on="b", labels={"mesh": "on"})
    await centre.apply([Mesh(Metadata("mesh"), MeshSpec(TD)), node("a"), node("b"), web, api])
    agents = [Agent("a", "web"), Agent("b", "api")]
    issuers, mixed, asked = set(), 0, 0
    while now < START + 3 * 365 * DAY:
        if (now.month, now.day) == (4, 1):  # off for a week
            for _ in range(7):
                now += DAY
                for leaf in (leaf for a in agents for leaf in a.leaves):
                    accepted(leaf, root, now)
            centre, keeper = opened()
        await keeper.look()
        for agent in agents:
            asked += await agent.renew(centre, now.timestamp())
        held = [leaf for a in agents for leaf in a.leaves]
        assert len(held) == 4
        for leaf in held:
            accepted(leaf, root, now)
        with_issuers = {x509.fingerprint(x509.load_chain(leaf.chain)[1]) for leaf in held}
        issuers |= with_issuers
        mixed += len(with_issuers) == 2
        now += DAY
    assert len(issuers) == 6  # one for each half of a year
    assert mixed > 15  # days on which leaves of two issuers met
    assert 4 * 110 < asked < 4 * 160  # every nine days or so, nobody in a storm
    assert (await centre.trust.look_over()).findings == ()
    assert len(store.certificates()) < 4 * 5  # what ended is forgotten
