"""A certificate this node holds, with its key. A value."""

from dataclasses import dataclass, field

from ca import x509
from ca.identity import Identity


@dataclass(frozen=True, slots=True)
class Leaf:
    """`chain` is PEM, leaf first, and `key` PEM. The dates are unix time, `serial` is upper-case hex."""

    uri: str
    chain: bytes
    key: bytes = field(repr=False)
    not_before: float
    not_after: float
    serial: str

    def valid(self, now: float) -> bool:
        """Whether it can be used at `now`."""
        return self.not_before <= now < self.not_after


def read_leaf(chain: bytes, key: bytes) -> Leaf:
    """A Leaf from PEM. Raises CertificateError for what is none of ours, or when the key is another's."""
    first = x509.load_chain(chain)[0]
    if x509.load_key(key).public_key() != first.public_key():
        raise x509.CertificateError("the private key does not belong to the certificate")
    return Leaf(
        str(x509.identity_of(first)),
        chain,
        key,
        first.not_valid_before_utc.timestamp(),
        first.not_valid_after_utc.timestamp(),
        x509.serial(first).upper(),
    )


def request(identity: Identity) -> tuple[bytes, bytes]:
    """(key, signing request) for a new certificate, both PEM. The key is fresh: none outlives its certificate."""
    key = x509.new_key()
    return x509.key_pem(key), x509.make_csr(key, identity)
