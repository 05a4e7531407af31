"""Namespaces that change while they are captured in."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from agent.node.capture import Capture
from agent.node.namespace import Namespace
from agent.node.starting import Starter
from agent.node.view import MeshView
from agent.node.workers import Workers
from agent.snapshot import Snapshot
from redirect import desired
from redirect.desired import Desired, Recognise
from tests.redirect.conftest import namespace
from tests.redirect.traffic import MARKS, ip

INSIDE = Desired((desired.Capture("shop/box", Recognise(everything=True), 15001),))


@pytest.fixture
def names() -> Iterator[tuple[str, str]]:
    """Two namespaces with an interface each."""
    with namespace() as one, namespace() as other:
        for name in (one, other):
            ip(name, "link", "add", "eth0", "up", "type", "veth")
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
    workers = Workers("node", (0, 0), MARKS, MeshView(Snapshot("node")), print, lambda: None, Starter(()))
    capture = Capture(workers, MARKS, (), 0)
    place = tmp_path / "place"
    place.symlink_to(f"/run/netns/{names[0]}")
    async with trio.open_nursery() as nursery:
        await capture.start(nursery, 0)
        assert await capture.widen({str(place): INSIDE}, ()) == {"shop/box"}
        ip(names[0], "link", "delete", "eth0")
        with trio.fail_after(5):
            await looking.wait()
        place.unlink()
        place.symlink_to(f"/run/netns/{names[1]}")
        assert await capture.widen({str(place): INSIDE}, ()) == {"shop/box"}
        await trio.sleep(0.5)
        assert await capture.inside() == {"shop/box"}
        nursery.cancel_scope.cancel()
    capture.close()
