"""Sockets kept in stock. The namespaces they are from do not matter here."""

import socket

from agent.worker.stock import FULL, Stocks
from tests.agent.relay.rig import descriptors


class Shop:
    """Hears what is ordered."""

    def __init__(self) -> None:
        self.orders: list[tuple[str, int, int]] = []
        self.deaf = False
        self.stocks = Stocks(self._want)

    def _want(self, *order) -> bool:
        if not self.deaf:
            self.orders.append(order)
        return not self.deaf

    def deliver(self, name: str, family: int, count: int) -> None:
        self.stocks.add(name, family, [socket.socket(family).detach() for _ in range(count)])

    def close(self) -> None:
        self.stocks.serve([])


def test_a_workload_without_a_namespace_needs_none():
    shop = Shop()
    assert shop.stocks.take("shop/web", socket.AF_INET) is None
    assert not shop.stocks.needed("shop/web")
    assert shop.orders == []


def test_both_families_are_ordered_at_once_and_again_when_half_are_gone():
    shop = Shop()
    shop.stocks.serve(["shop/web"])
    assert shop.orders == [("shop/web", f, FULL) for f in (socket.AF_INET, socket.AF_INET6)]
    assert shop.stocks.needed("shop/web")
    assert shop.stocks.take("shop/web", socket.AF_INET) is None  # not there yet, and not ordered twice
    assert len(shop.orders) == 2
    shop.deliver("shop/web", socket.AF_INET, FULL)
    for left in range(FULL - 1, FULL // 2, -1):
        sock = shop.stocks.take("shop/web", socket.AF_INET)
        assert not sock.getblocking()
        sock.close()
        assert len(shop.orders) == 2, left
    shop.stocks.take("shop/web", socket.AF_INET).close()
    assert shop.orders[2:] == [("shop/web", socket.AF_INET, FULL // 2)]
    shop.close()


def test_what_is_no_longer_served_is_closed_whenever_it_comes():
    before = descriptors()
    shop = Shop()
    shop.stocks.serve(["shop/web", "shop/db"])
    shop.deliver("shop/web", socket.AF_INET, 3)
    shop.stocks.serve(["shop/db"])
    shop.deliver("shop/web", socket.AF_INET, 3)
    assert descriptors() == before
    assert shop.stocks.take("shop/web", socket.AF_INET) is None


def test_one_that_comes_back_is_stocked_anew_though_its_first_order_was_never_met():
    shop = Shop()
    shop.stocks.serve(["shop/web"])
    shop.stocks.serve([])
    shop.orders.clear()
    shop.stocks.serve(["shop/web"])
    assert [count for _, _, count in shop.orders] == [FULL, FULL]


def test_serving_the_same_again_orders_nothing_more():
    shop = Shop()
    shop.stocks.serve(["shop/web"])
    shop.stocks.serve(["shop/web"])
    assert len(shop.orders) == 2


def test_an_order_that_was_not_heard_is_given_again():
    shop = Shop()
    shop.deaf = True
    shop.stocks.serve(["shop/web"])
    shop.deaf = False
    assert shop.stocks.take("shop/web", socket.AF_INET) is None
    assert shop.orders == [("shop/web", socket.AF_INET, FULL)]


def test_what_there_is_no_room_for_is_ordered_again_one_at_a_time():
    shop = Shop()
    shop.stocks.serve(["shop/db", "shop/web"])
    shop.orders.clear()
    for name in ("shop/web", "shop/db"):
        shop.stocks.decline(name, socket.AF_INET, FULL)
    assert shop.stocks.take("shop/web", socket.AF_INET) is None
    shop.stocks.decline("shop/unknown", socket.AF_INET, FULL)
    assert shop.orders == []
    for _ in range(3):
        shop.stocks.resume()
        shop.stocks.serve(["shop/web"])
    assert shop.orders == [("shop/web", socket.AF_INET, FULL)]
