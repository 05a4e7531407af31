"""Namespaces that change while they are captured in."""

import errno
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from agent.messages import Stock, StockWanted
from agent.node import workers as workers_module
from agent.node.capture import Capture
from agent.node.namespace import Namespace
from agent.node.starting import Starter
from agent.node.view import MeshView
from agent.node.workers import Workers
from agent.snapshot import Snapshot
from redirect import desired
from redirect.desired import Desired, Recognise
from redirect.explain import explain
from redirect.kernel import Kernel
from redirect.namespace import in_namespace
from redirect.netlink import Refused
from redirect.route_watch import RouteWatch
from redirect.watch import Watch
from tests.redirect.conftest import namespace
from tests.redirect.traffic import MARKS, ip, nft

INSIDE = Desired((desired.Capture("shop/box", Recognise(everything=True), 15001),))


@pytest.fixture
def names() -> Iterator[tuple[str, str]]:
    """Two namespaces with an interface each."""
    with namespace() as one, namespace() as other, namespace() as far:
        for name, end in ((one, "one"), (other, "other")):
            ip(name, "link", "add", "eth0", "up", "type", "veth", "peer", "name", end, "netns", far)
        yield one, other


async def test_a_namespace_may_be_left_while_its_interfaces_are_looked_at(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a container restarts: its interface goes, and soon its name leads elsewhere."""
    look_out, looking = Namespace.look_out, trio.Event()
    token = trio.lowlevel.current_trio_token()

    def slowly(self: Namespace) -> bool:
        token.run_sync_soon(looking.set)
        time.sleep(0.2)
        return look_out(self)

    monkeypatch.setattr(Namespace, "look_out", slowly)
    place = tmp_path / "place"
    place.symlink_to(f"/run/netns/{names[0]}")
    async with _captured(place) as (capture, _):
        ip(names[0], "link", "delete", "eth0")
        with trio.fail_after(5):
            await looking.wait()
        place.unlink()
        place.symlink_to(f"/run/netns/{names[1]}")
        assert await capture.widen({str(place): INSIDE}, ()) == {"shop/box"}
        await trio.sleep(0.5)
        assert await capture.inside() == {"shop/box"}


@asynccontextmanager
async def _captured(name: str | Path) -> AsyncIterator[tuple[Capture, list[str]]]:
    """The namespace, by its name or a path that leads there, is captured in; with what was called."""
    workers = Workers("node", (0, 0), MARKS, MeshView(Snapshot("node")), print, lambda: None, Starter(()))
    called: list[str] = []
    lost, emptied = (lambda: called.append("lost")), (lambda: called.append("emptied"))
    capture = Capture(workers, MARKS, (), 0, lost, emptied)
    async with trio.open_nursery() as nursery:
        await capture.start(nursery, 0)
        assert await capture.widen({str(Path("/run/netns", name)): INSIDE}, ()) == {"shop/box"}
        yield capture, called
        nursery.cancel_scope.cancel()
    capture.close()


async def _soon(condition: Callable[[], bool]) -> None:
    end = trio.current_time() + 10
    while not condition():
        assert trio.current_time() < end
        await trio.sleep(0.05)


def _failing_once(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, error: Exception) -> list[str]:
    """The method fails the first time; names each call."""
    whole, calls = getattr(owner, name), list[str]()

    def once(self: object, *arguments: object) -> object:
        calls.append(name)
        if len(calls) == 1:
            raise error
        return whole(self, *arguments)

    monkeypatch.setattr(owner, name, once)
    return calls


async def test_a_look_at_interfaces_that_failed_is_tried_again(
    names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    look_out, busy = Namespace.look_out, True

    def look(self: Namespace) -> bool:
        changed = look_out(self)
        if busy:
            self.cut_off ^= changed
            raise explain(Refused.ours(errno.EBUSY, "a listing of interfaces"))
        return changed

    monkeypatch.setattr(Namespace, "look_out", look)
    async with _captured(names[0]) as (capture, called):
        ip(names[0], "link", "set", "eth0", "down")
        await trio.sleep(0.5)
        assert called == ["lost"]
        busy = False
        await _soon(lambda: bool("emptied" in called))
        assert await capture.inside() == frozenset()


async def test_interfaces_that_flap_are_looked_at_now_and_then(
    names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = list[float]()
    look_out = Namespace.look_out
    monkeypatch.setattr(Namespace, "look_out", lambda self: (looks.append(time.monotonic()), look_out(self))[1])
    async with _captured(names[0]) as (capture, _):
        flaps = "".join(f"link set eth0 {'down' if n % 2 else 'up'}\n" for n in range(40))
        before = time.monotonic()
        while time.monotonic() < before + 2:
            await trio.to_thread.run_sync(
                lambda: subprocess.run(["ip", "-n", names[0], "-batch", "-"], input=flaps, text=True, check=True)
            )
            await trio.sleep(0.005)
        seconds = time.monotonic() - before
        assert looks[0] < before + 1
        assert len(looks) <= 10 + seconds / 0.1 + 2
        ip(names[0], "link", "set", "eth0", "down")
        with trio.fail_after(10):
            while await capture.inside():
                pass


@pytest.mark.parametrize(
    ("owner", "method"), [(Watch, "foreign"), (Kernel, "_current_generation")], ids=["unread", "unknown"]
)
async def test_news_that_cannot_be_read_count_as_a_change(
    names: tuple[str, str], monkeypatch: pytest.MonkeyPatch, owner: type, method: str
) -> None:
    for flag in ("OWNED", "PERSISTENT"):  # else nobody else could change it
        monkeypatch.setattr(f"redirect.kernel.{flag}", 0)
    async with _captured(names[0]) as (capture, _):
        if owner is Kernel:  # it is asked when news were lost
            drained = Watch.foreign
            monkeypatch.setattr(Watch, "foreign", lambda self: drained(self) and not self._unchanged() and ["lost"])
            _failing_once(monkeypatch, owner, method, Refused.ours(errno.ENOMEM, "a look at the tables"))
        else:
            _failing_once(monkeypatch, owner, method, OSError(errno.ENOMEM, "no memory"))
        nft(names[0], "delete table inet culvert")
        await _soon(lambda: bool(capture.restored))
        assert "table inet culvert" in nft(names[0], "list", "tables")


@pytest.mark.parametrize("owner", [RouteWatch, Namespace])
async def test_routing_is_put_back_although_that_failed_once(
    names: tuple[str, str], monkeypatch: pytest.MonkeyPatch, owner: type
) -> None:
    async with _captured(names[0]):
        error = OSError(errno.ENOMEM, "no memory")
        calls = _failing_once(monkeypatch, owner, "foreign" if owner is RouteWatch else "reroute", error)
        rules = ip(names[0], "rule")
        for line in rules.splitlines():
            number, _, rest = line.partition(":")
            if number not in ("0", "32766", "32767"):
                ip(names[0], "rule", "delete", *rest.split())
        assert ip(names[0], "rule") != rules
        await _soon(lambda: bool(ip(names[0], "rule") == rules))
        assert len(calls) > 1


async def test_sockets_of_a_namespace_that_was_left_are_replaced_when_there_is_another(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if there is none for a while, as between two lives of a container."""
    told: list[str] = []
    monkeypatch.setattr(Workers, "restock", lambda self, workload: told.append(workload))
    place = tmp_path / "place"
    place.symlink_to(f"/run/netns/{names[0]}")
    async with _captured(place) as (capture, _):
        place.unlink()
        assert await capture.widen({str(place): INSIDE}, ()) == set()
        assert told == []
        place.symlink_to(f"/run/netns/{names[1]}")
        for _ in range(2):
            assert await capture.widen({str(place): INSIDE}, ()) == {"shop/box"}
            assert told == ["shop/box"]


async def test_sockets_are_of_the_namespace_that_the_name_leads_to_when_they_are_given(
    names: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "place"
    place.symlink_to(f"/run/netns/{names[0]}")
    spoofers, made = workers_module._spoofers, list[socket.socket]()

    def moved(family: socket.AddressFamily, mark: int, count: int) -> list[socket.socket]:
        if not made:
            place.unlink()
            place.symlink_to(f"/run/netns/{names[1]}")
        made.extend(found := spoofers(family, mark, count))
        return found

    class Receiver:
        gone = False

        def say(self, message: Stock, socks: list[socket.socket], give: bool) -> None:
            self.got = message, [_namespace_of(sock) for sock in socks]

    monkeypatch.setattr(workers_module, "_spoofers", moved)
    workers = Workers("node", (0, 0), MARKS, MeshView(Snapshot("node")), print, lambda: None, Starter(()))
    workers.namespaced({"shop/box": str(place)})
    receiver = Receiver()
    await workers._stock(receiver, StockWanted("shop/box", socket.AF_INET, 2))  # type: ignore[arg-type] # all it asks
    there = in_namespace(names[1], socket.socket)
    assert receiver.got == (Stock("shop/box", socket.AF_INET), [_namespace_of(there)] * 2)
    assert [sock.fileno() for sock in made[:2]] == [-1, -1]
    for sock in (there, *made):
        sock.close()


def _namespace_of(sock: socket.socket) -> bytes:
    return sock.getsockopt(socket.SOL_SOCKET, 71, 8)  # SO_NETNS_COOKIE
