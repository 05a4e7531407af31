"""Which certificate proves what, to whom."""

from datetime import UTC, datetime, timedelta

import pytest

from agent.snapshot import Snapshot
from agent.tunnel.credentials import Arrival, Credentials
from ca import tls, x509
from ca.identity import NodeIdentity, WorkloadIdentity
from tests.agent.relay.rig import DB, WEB, authority, leaf

API = WorkloadIdentity("shop.example", "shop", "api")


def held(*identities) -> Credentials:
    found = Credentials(lambda: Snapshot("n1"))
    found.trust(x509.pem(authority().cert))
    for identity in identities:
        found.put(str(identity), *leaf(identity))
    return found


def meet(client_ctx, credentials: Credentials, name: str | None):
    """A handshake with what answers on 15008; -> (whom it answered as, the certificate the client saw)."""
    arrival = Arrival("10.0.0.1")
    client = tls.Machine(client_ctx, server=False, server_name=name)
    server = tls.Machine(credentials.answering(), server=True, tag=arrival)
    done = False
    while not done:
        done = client.handshake() & server.handshake()
        for one, other in ((client, server), (server, client)):
            if flight := one.take():
                other.feed(flight)
    return arrival.identity, client.peer_certificate


def test_the_server_name_chooses_among_those_held():
    ours = held(DB, API)
    dialling = held(WEB).dialling(WEB)
    for identity in (DB, API):
        answered, seen = meet(dialling, ours, identity.sni)
        assert answered == identity
        assert x509.identity_of(seen) == identity


def test_a_new_certificate_serves_new_handshakes():
    ours, dialling = held(DB), held(WEB).dialling(WEB)
    _, before = meet(dialling, ours, DB.sni)
    leaf.cache_clear()
    ours.put(str(DB), *leaf(DB))
    _, after = meet(dialling, ours, DB.sni)
    assert before.serial_number != after.serial_number


def test_forgotten_is_forgotten_both_ways():
    ours = held(DB, API)
    ours.forget(str(DB))
    ours.forget("spiffe://shop.example/ns/shop/sa/nobody")
    assert ours.dialling(DB) is None
    assert ours.dialling(API) is not None
    with pytest.raises(tls.TlsError):
        meet(held(WEB).dialling(WEB), ours, DB.sni)


def test_new_roots_hold_for_all():
    ours = held(DB)
    other = x509.new_root("shop.example", datetime.now(UTC), timedelta(days=1))
    meet(held(WEB).dialling(WEB), ours, DB.sni)
    ours.trust(x509.pem(other.cert))
    with pytest.raises(tls.TlsError):
        meet(held(WEB).dialling(WEB), ours, DB.sni)
    ours.trust(x509.pem(other.cert, authority().cert))  # both, while roots are exchanged
    assert meet(held(WEB).dialling(WEB), ours, DB.sni)[0] == DB


def test_nobody_without_a_certificate():
    assert held().dialling(WEB) is None


def test_only_workloads():
    with pytest.raises(ValueError, match="no workload's identity"):
        held().put(str(NodeIdentity("shop.example", "n1")), b"", b"")
