"""A tunnel ends with what it stands on."""

import pytest

from agent.tunnel.terms import Standing, Terms
from ca.identity import WorkloadIdentity
from ca.resources.metadata import Metadata
from ca.resources.revocation import Revocation, RevocationSpec
from ca.revoked import NONE_REVOKED

OVERTIME = 60.0
WEB, DB = WorkloadIdentity("td", "shop", "web"), WorkloadIdentity("td", "shop", "db")
TERMS = Terms(WEB, DB, "1f", "2a", 1000.0)


@pytest.mark.parametrize(
    ("now", "standing"),
    [
        (999.0, Standing.GOOD),
        (1000.0, Standing.ENDING),
        (999.0 + OVERTIME, Standing.ENDING),
        (1000.0 + OVERTIME, Standing.OVER),
    ],
)
def test_connections_may_outlive_the_certificates_a_while(now: float, standing: Standing) -> None:
    assert TERMS.standing(now, OVERTIME) is standing


@pytest.mark.parametrize(
    ("spec", "objects"),
    [
        (RevocationSpec(identity=str(WEB)), True),
        (RevocationSpec(identity=str(DB)), True),
        (RevocationSpec(serials=("1f",)), True),
        (RevocationSpec(serials=("2a",)), True),
        (RevocationSpec(serials=("3b",)), False),
        (RevocationSpec(identity="spiffe://td/ns/shop/sa/other"), False),
    ],
)
def test_either_end_may_be_revoked(spec: RevocationSpec, objects: bool) -> None:
    revoked = NONE_REVOKED.put(Revocation(Metadata("x"), spec))
    assert bool(TERMS.objection(revoked)) is objects
