"""Listings that changes overtake are asked for again, and one that never comes to rest is no empty one."""

import errno
from contextlib import closing

import pytest

from redirect.netlink import ROUTE, Interrupted, Netlink, Refused
from redirect.routing import GET_RULE, listed


class Overtaken(Netlink):
    """Its first listings are torn."""

    torn = 0

    def dump(self, kind: int, payload: bytes, about: str) -> list[bytes]:
        found = super().dump(kind, payload, about)
        self.torn -= 1
        if self.torn >= 0:
            raise Interrupted
        return found


def test_a_listing_that_was_overtaken_is_asked_for_again() -> None:
    with closing(Overtaken(ROUTE)) as netlink:
        netlink.torn = 4
        assert len(listed(netlink, GET_RULE, 2)) >= 3  # local, main and default


def test_a_listing_that_never_rests_is_refused() -> None:
    with closing(Overtaken(ROUTE)) as netlink:
        netlink.torn = 1000
        with pytest.raises(Refused, match=r"listing of routing.*changes faster than it is listed") as caught:
            listed(netlink, GET_RULE, 2)
        assert caught.value.code == errno.EBUSY
