"""Identities have one spelling, and their classes never mix."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.identity import CentralIdentity, IdentityError, NodeIdentity, OperatorIdentity, WorkloadIdentity, parse

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?", fullmatch=True)


@given(NAMES, NAMES, NAMES)
def test_a_workload_identity_survives_its_uri(domain: str, namespace: str, account: str) -> None:
    identity = WorkloadIdentity(domain, namespace, account)
    assert parse(str(identity)) == identity


@given(NAMES, NAMES)
def test_classes_differ_even_with_equal_names(domain: str, name: str) -> None:
    each = [cls(domain, name) for cls in (NodeIdentity, OperatorIdentity, CentralIdentity)]
    assert [parse(str(i)) for i in each] == each
    assert len(set(each)) == 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        "https://shop.example/ns/a/sa/b",
        "spiffe://shop.example",
        "spiffe://shop.example/",
        "spiffe://shop.example/ns/a/sa/b/",
        "spiffe://shop.example/ns/a/sa/b/c",
        "spiffe://shop.example/ns//sa/b",
        "spiffe://Shop.example/ns/a/sa/b",
        "spiffe://shop.example/ns/a/sa/B",
        "spiffe://shop.example/ns/a/sa/b?x",
        "spiffe://shop.example:1/ns/a/sa/b",
        "spiffe:///ns/a/sa/b",
        "spiffe://shop.example/node/",
        "spiffe://shop.example/pod/x",
        "spiffe://shop.example/ns/a\n/sa/b",
    ],
)
def test_what_is_no_identity_is_refused(text: str) -> None:
    with pytest.raises(IdentityError):
        parse(text)


def test_the_sni_is_52_base32_characters() -> None:
    label, rest = WorkloadIdentity("shop.example", "shop", "web").sni.split(".", 1)
    assert (len(label), rest) == (52, "id.culvert")
    assert label == label.lower()
