"""What is revoked, put and taken back in any order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.identity import CentralIdentity, NodeIdentity, WorkloadIdentity
from ca.resources.metadata import Key, Metadata
from ca.resources.revocation import Revocation, RevocationSpec, canonical_serial, revocation_name
from ca.revoked import NONE_REVOKED, Revoked

WEB = WorkloadIdentity("td", "shop", "web")
SPECS = st.builds(
    RevocationSpec,
    identity=st.sampled_from([str(WEB), "spiffe://td/node/a", "spiffe://td/operator/o"]),
    serials=st.sets(st.sampled_from(["1f", "2a", "3b"]), max_size=2).map(tuple),
    reason=st.sampled_from(["", "lost"]),
)
STEPS = st.lists(st.tuples(st.sampled_from(["x", "y", "z"]), st.none() | SPECS), max_size=12)


@given(STEPS)
def test_the_indices_are_those_of_the_objects(steps: list[tuple[str, RevocationSpec | None]]) -> None:
    revoked, objects = NONE_REVOKED, {}
    for name, spec in steps:
        key = Key("Revocation", "", name)
        if spec is None:
            revoked = revoked.drop(key)
            objects.pop(key, None)
        else:
            objects[key] = Revocation(Metadata(name), spec)
            revoked = revoked.put(objects[key])
    afresh = Revoked()
    for revocation in objects.values():
        afresh = afresh.put(revocation)
    assert dict(revoked.objects) == objects
    assert revoked.identities == afresh.identities
    assert revoked.serials == afresh.serials
    for serial in ("1f", "2a", "3b"):
        assert bool(revoked.serial(serial.upper())) == any(serial in r.spec.serials for r in objects.values())
        assert revoked.serial(f"0{serial}") == revoked.serial(serial)


def test_a_refusal_says_why() -> None:
    revoked = NONE_REVOKED.put(Revocation(Metadata("x"), RevocationSpec(identity=str(WEB), reason="key lost")))
    assert revoked.objection(WEB, "1f") == f"{WEB} is revoked (key lost)"
    assert revoked.objection(NodeIdentity("td", "a"), "1f") == ""


@pytest.mark.parametrize(("text", "plain"), [("1F", "1f"), ("0x1f", "1f"), ("00:1F:2a", "1f2a"), (" 0a ", "a")])
def test_serials_have_one_spelling(text: str, plain: str) -> None:
    assert canonical_serial(text) == plain


@pytest.mark.parametrize("text", ["", "0", "xyz", "1f" * 21, "spiffe://td/node/a"])
def test_what_is_no_serial(text: str) -> None:
    with pytest.raises(ValueError, match="no serial number"):
        canonical_serial(text)


def test_what_cannot_be_revoked() -> None:
    with pytest.raises(ValueError, match="say what is revoked"):
        RevocationSpec()
    with pytest.raises(ValueError, match="a centre cannot be revoked"):
        RevocationSpec(identity=str(CentralIdentity("td", "c")))


def test_names_of_different_targets_differ() -> None:
    targets = [WEB, WorkloadIdentity("td", "shop-web", "x"), WorkloadIdentity("td", "shop", "web-x"), "1f"]
    names = {revocation_name(t) for t in targets}
    assert len(names) == len(targets)
    assert all(Metadata(name) for name in names)
