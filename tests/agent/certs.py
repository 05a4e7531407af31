"""A root for tests, and leaves below it."""

from datetime import UTC, datetime, timedelta

from agent.leaf import Leaf, read_leaf
from ca import x509
from ca.identity import parse


class TestRoot:
    """Issues what it is asked for, at a time of the test's choosing."""

    __test__ = False

    def __init__(self, trust_domain: str = "shop.example", now: float = 1_800_000_000.0) -> None:
        self.trust_domain = trust_domain
        self.issuer = x509.new_root(trust_domain, datetime.fromtimestamp(now, UTC), timedelta(days=3650))
        self.pem = x509.pem(self.issuer.cert)

    def sign(self, csr: bytes, now: float, life: float = 86400.0) -> bytes:
        facts = x509.read_csr(csr)
        return x509.pem(
            x509.issue(
                self.issuer, facts.identity, facts.public_key, datetime.fromtimestamp(now, UTC), timedelta(seconds=life)
            )
        )

    def leaf(self, uri: str, now: float = 1_800_000_000.0, life: float = 86400.0) -> Leaf:
        key = x509.new_key()
        return read_leaf(self.sign(x509.make_csr(key, parse(uri)), now, life), x509.key_pem(key))
