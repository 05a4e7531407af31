"""A table with an owner: nobody else's to change while the agent lives, anybody's to delete when it does not."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from redirect.desired import Capture, Desired, Recognise
from redirect.encode import OWNED, PERSISTENT, take_table
from redirect.kernel import Kernel
from redirect.namespace import in_namespace
from redirect.netlink import NETFILTER, CaptureError, Netlink, Refused
from tests.redirect.traffic import nft

DESIRED = Desired((Capture("shop/web", Recognise(uid=1001), 15101),), frozenset({("10.0.0.1", 80)}))
OTHER = replace(DESIRED, mesh=frozenset({("10.0.0.2", 80)}), inbound_port=15007)


@pytest.fixture
def owner(netns: str) -> Iterator[Kernel]:
    netlink = in_namespace(netns, lambda: Netlink(NETFILTER))
    try:
        netlink.transact([take_table("probe", OWNED | PERSISTENT)])
    except Refused as refused:
        pytest.skip(f"{refused.about} with flags owner and persist: {refused.refusal} (they need Linux 6.9)")
    finally:
        netlink.close()
    nft(netns, "delete", "table", "inet", "probe")
    kernel = Kernel(netns, own=True)
    yield kernel
    kernel.close()


def tables(netns: str) -> str:
    return nft(netns, "list", "tables")


def test_it_survives_a_flush(netns: str, owner: Kernel) -> None:
    nft(netns, "add", "table", "inet", "other")
    owner.apply(DESIRED)
    watch = owner.watch()
    try:
        nft(netns, "flush", "ruleset")
        assert watch.foreign() == []
    finally:
        watch.close()
    assert tables(netns) == "table inet culvert\n"
    assert owner.differences(DESIRED) == []


@pytest.mark.parametrize(
    "change", ["delete table inet culvert", "flush chain inet culvert out", "add rule inet culvert out accept"]
)
def test_nobody_else_changes_it(netns: str, owner: Kernel, change: str) -> None:
    owner.apply(DESIRED)
    with pytest.raises(AssertionError, match="not permitted"):
        nft(netns, *change.split())
    owner.apply(OTHER)
    owner.apply(DESIRED, afresh=True)
    assert owner.differences(DESIRED) == []


def test_without_the_owner_it_stays_and_anybody_may_delete_it(netns: str, owner: Kernel) -> None:
    owner.apply(DESIRED)
    owner.close()
    anybody = Kernel(netns)
    try:
        assert anybody.differences(DESIRED) == []
        nft(netns, "delete", "table", "inet", "culvert")
        assert tables(netns) == ""
    finally:
        anybody.close()


def test_the_next_one_takes_it_over(netns: str, owner: Kernel) -> None:
    owner.apply(DESIRED)
    owner.close()
    successor = Kernel(netns, own=True)
    try:
        successor.apply(OTHER)
        nft(netns, "flush", "ruleset")
        assert successor.differences(OTHER) == []
        late = Kernel(netns, own=True)
        try:
            with pytest.raises(CaptureError, match="end the agent first"):
                late.apply(DESIRED)
            with pytest.raises(CaptureError, match="end the agent first"):
                late.remove()
        finally:
            late.close()
        assert successor.differences(OTHER) == []
        successor.remove()
        assert tables(netns) == ""
        successor.apply(DESIRED)
        nft(netns, "flush", "ruleset")
        assert successor.differences(DESIRED) == []
    finally:
        successor.close()


def test_one_of_an_older_version_is_used_as_it_is(netns: str, owner: Kernel) -> None:
    before = Kernel(netns)
    before.apply(OTHER)
    before.close()
    owner.apply(DESIRED)
    assert owner.differences(DESIRED) == []
    watch = owner.watch()
    try:
        nft(netns, "flush", "ruleset")
        assert "table deleted" in watch.foreign()
    finally:
        watch.close()
    owner.apply(DESIRED, afresh=True)
    nft(netns, "flush", "ruleset")
    assert owner.differences(DESIRED) == []  # made afresh, it is ours
