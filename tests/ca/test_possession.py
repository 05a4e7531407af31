"""A proof is good for one key, one request and one connection."""

import pytest

from ca import x509
from ca.possession import prove, proves

KEY, OTHER = x509.new_key(), x509.new_key()
BINDING = bytes(range(32))


def test_proven():
    assert proves(KEY.public_key(), prove(KEY, "csr", BINDING), "csr", BINDING)


@pytest.mark.parametrize(
    ("key", "csr", "binding"),
    [(OTHER, "csr", BINDING), (KEY, "another", BINDING), (KEY, "csr", BINDING[::-1]), (KEY, "csr", b"")],
)
def test_good_for_nothing_else(key, csr, binding):
    assert not proves(key.public_key(), prove(KEY, "csr", BINDING), csr, binding)


@pytest.mark.parametrize("garbage", ["", "=", "AAAA", "no base64 at all", "é", "A" * 100_000])
def test_garbage_proves_nothing(garbage):
    assert not proves(KEY.public_key(), garbage, "csr", BINDING)
