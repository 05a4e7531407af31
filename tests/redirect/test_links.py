"""Namespaces that lose their last interface."""

import select
import subprocess
from collections.abc import Iterator

import pytest

from redirect.links import LinkWatch
from redirect.namespace import in_namespace
from tests.redirect.conftest import namespace
from tests.redirect.traffic import ip


@pytest.fixture
def far() -> Iterator[str]:
    """The namespace that interfaces lead to."""
    with namespace() as name:
        yield name


@pytest.fixture
def watch(netns: str, far: str) -> Iterator[LinkWatch]:
    """Of a namespace that has the interface `one`."""
    _add(netns, "one", far)
    watch = in_namespace(netns, LinkWatch)
    yield watch
    watch.close()


def _add(netns: str, name: str, far: str) -> None:
    ip(netns, "link", "add", name, "up", "type", "veth", "peer", "name", name, "netns", far)


def _news(watch: LinkWatch) -> bool:
    return bool(select.select([watch], [], [], 0)[0])


def test_it_is_cut_off_when_its_last_interface_goes_and_no_more_when_one_comes(
    netns: str, far: str, watch: LinkWatch
) -> None:
    _add(netns, "two", far)
    assert not watch.cut_off()
    assert not _news(watch)
    ip(netns, "link", "delete", "one")
    assert _news(watch)
    assert not watch.cut_off()
    ip(netns, "link", "delete", "two")
    assert watch.cut_off()
    assert not _news(watch)
    _add(netns, "three", far)
    assert _news(watch)
    assert not watch.cut_off()


def test_one_that_never_led_anywhere_is_not_cut_off(netns: str) -> None:
    """And an end of a tunnel leads nowhere by itself."""
    watch = in_namespace(netns, LinkWatch)
    try:
        ip(netns, "tuntap", "add", "dev", "tun7", "mode", "tun")
        ip(netns, "link", "delete", "tun7")
        assert _news(watch)
        assert not watch.cut_off()
    finally:
        watch.close()


def test_one_that_is_down_leads_nowhere(netns: str, far: str, watch: LinkWatch) -> None:
    """As gretap0 and erspan0, which are in every namespace where the kernel knows GRE."""
    ip(netns, "link", "add", "gretap0", "type", "veth", "peer", "name", "gretap0", "netns", far)
    assert not watch.cut_off()
    ip(netns, "link", "delete", "one")
    assert watch.cut_off()
    ip(netns, "link", "set", "gretap0", "up")
    assert _news(watch)
    assert not watch.cut_off()


def test_when_news_were_lost_it_looks_all_the_same(netns: str, watch: LinkWatch) -> None:
    changes = "".join(f"link set one mtu {1000 + number % 2}\n" for number in range(1000))
    subprocess.run(["ip", "-n", netns, "-batch", "-"], input=changes, text=True, check=True)
    ip(netns, "link", "delete", "one")
    assert watch.cut_off()


def test_what_leads_nowhere_but_inside_does_not_count(netns: str, watch: LinkWatch) -> None:
    """As the bridge of an engine that runs inside a container."""
    ip(netns, "link", "add", "docker0", "up", "type", "bridge")
    ip(netns, "link", "add", "here", "up", "type", "veth", "peer", "name", "there")
    ip(netns, "link", "set", "there", "up", "master", "docker0")
    assert not watch.cut_off()
    ip(netns, "link", "delete", "one")
    assert watch.cut_off()


def test_what_has_joined_a_bridge_leads_out(netns: str, watch: LinkWatch) -> None:
    ip(netns, "link", "add", "docker0", "up", "type", "bridge")
    ip(netns, "link", "set", "one", "master", "docker0")
    assert not watch.cut_off()
    ip(netns, "link", "delete", "one")
    assert watch.cut_off()
