import pytest

from agent.leaf import read_leaf, request
from ca.identity import parse
from ca.resources.revocation import canonical_serial
from ca.x509 import CertificateError, read_csr
from tests.agent.certs import TestRoot

WEB = "spiffe://shop.example/ns/shop/sa/web"


def test_facts_of_a_leaf():
    leaf = TestRoot().leaf(WEB, now=1_800_000_000, life=3600)
    assert leaf.uri == WEB
    assert (leaf.not_before, leaf.not_after) == (1_800_000_000 - 120, 1_800_003_600)
    assert leaf.valid(1_800_000_000)
    assert not leaf.valid(1_800_003_600)
    assert int(leaf.serial, 16) > 0
    assert "PRIVATE" not in repr(leaf)


def test_a_serial_has_the_spelling_in_which_it_is_revoked():
    """One in sixteen begins with a zero when it is written byte by byte."""
    root = TestRoot()
    for _ in range(200):
        serial = root.leaf(WEB).serial
        assert canonical_serial(serial) == serial.lower()


def test_a_key_of_another_certificate_is_refused():
    root = TestRoot()
    with pytest.raises(CertificateError, match="does not belong"):
        read_leaf(root.leaf(WEB).chain, root.leaf(WEB).key)


def test_a_request_asks_for_the_identity_with_a_fresh_key():
    (key, csr), (other, _) = request(parse(WEB)), request(parse(WEB))
    assert str(read_csr(csr).identity) == WEB
    assert key != other
