"""Real containers of Podman, seen through its Docker API."""

import os
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import trio

from agent.discovery import containers
from agent.discovery.containers import Containers, described, relink
from agent.discovery.docker import Config, Container, Engine, EngineError, State
from agent.discovery.found import Found, Seen
from agent.discovery.tenants import Tenants
from ca.resources.capture import FailMode
from redirect.cgroup import mount_point
from redirect.namespace import in_namespace
from tests.agent.discovery.podman import Podman, podman
from tests.redirect.conftest import namespace

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def engine() -> Iterator[Podman]:
    with podman() as made:
        made.serve()
        yield made


class Watching:
    """A source that runs; `wait` until what it sees fits."""

    def __init__(self, source: Containers) -> None:
        self.source = source
        self.relinked = 0
        self.tenants = Tenants()
        self.seen = Seen(whole=False)
        self._news = trio.Event()

    def publish(self, seen: Seen) -> None:
        self.seen = seen
        self._news.set()
        self._news = trio.Event()

    @property
    def found(self) -> dict[str, Found]:
        return {f.place: f for f in self.seen.found}

    async def wait(self, fits: Callable[[], bool], seconds: float = 3.0) -> float:
        started = trio.current_time()
        with trio.move_on_after(seconds):
            while not fits():
                await self._news.wait()
        assert fits(), self.seen
        return trio.current_time() - started


@pytest.fixture
async def watching(engine: Podman, tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Watching]:
    def relinked() -> None:
        made.relinked += 1

    def met(tenants: Tenants) -> None:
        made.tenants = tenants

    made = Watching(Containers("n1", (engine.socket,), tmp_path / "netns", relinked, met))
    nursery.start_soon(made.source.run, made.publish)
    yield made
    nursery.cancel_scope.cancel()


async def of_engine(engine: Podman, *words: str) -> str:
    return await trio.to_thread.run_sync(lambda: engine(*words))


async def test_containers_come_and_go(engine: Podman, watching: Watching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "LINGER", 1.0)
    await watching.wait(lambda: watching.seen.whole, 5)
    await trio.to_thread.run_sync(lambda: engine.run("plain", "--network=none"))
    await trio.to_thread.run_sync(
        lambda: engine.run(
            "inside",
            "--network=none",
            namespace="shop",
            labels="app=web mesh=on",
            ports="80,443",
            address="10.1.2.3",
            fail_mode="open",
        )
    )
    await watching.wait(lambda: "inside" in watching.found)
    found = watching.found["inside"]
    assert (found.title, found.service_account, found.ports) == ("shop/inside-n1", "inside", (80, 443))
    assert (dict(found.labels), found.address) == ({"app": "web", "mesh": "on"}, "10.1.2.3")
    assert found.workload("n1", (80,)).spec.fail_mode is FailMode.OPEN
    link = Path(found.match.netns or "")
    pid = await of_engine(engine, "inspect", "inside", "--format", "{{.State.Pid}}")
    assert os.stat(link).st_ino == os.stat(f"/proc/{pid}/ns/net").st_ino
    assert "plain" not in watching.found

    before = watching.relinked
    await of_engine(engine, "restart", "--time", "0", "inside")
    again = await of_engine(engine, "inspect", "inside", "--format", "{{.State.Pid}}")
    await watching.wait(lambda: link.exists() and os.stat(link).st_ino == os.stat(f"/proc/{again}/ns/net").st_ino)
    assert watching.relinked > before
    assert watching.found["inside"] == found  # the same to the centre

    # Stopped, it stands for as long as it exists, without what others could call.
    await of_engine(engine, "stop", "--time", "0", "inside")
    await watching.wait(lambda: watching.found["inside"].ports == (), 3)
    assert watching.found["inside"] == replace(found, ports=(), address="")
    assert not link.is_symlink()
    serves = {str(link): frozenset({80, 443})}  # as is written on it, running or not
    assert watching.tenants == Tenants(resting=frozenset({str(link)}), serves=serves)
    await of_engine(engine, "start", "inside")
    await watching.wait(lambda: watching.found["inside"] == found, 3)
    assert watching.tenants == Tenants(serves=serves)

    await of_engine(engine, "rm", "--force", "--time", "0", "inside")
    await watching.wait(lambda: "inside" not in watching.found, 3)
    assert not link.is_symlink()


async def test_one_in_the_machines_network_is_known_by_its_cgroup(engine: Podman, watching: Watching) -> None:
    if mount_point() is None:
        pytest.skip("no cgroup v2 is mounted here")
    await trio.to_thread.run_sync(lambda: engine.run("host", "--network=host", ports="8080", service_account="web"))
    pid = await of_engine(engine, "inspect", "host", "--format", "{{.State.Pid}}")
    await watching.wait(lambda: bool(watching.seen.found) or bool(watching.seen.problems), 5)
    cgroup = Path(f"/proc/{pid}/cgroup").read_text().splitlines()[-1].removeprefix("0::")
    if cgroup == "/":
        assert "in no cgroup (v2) of its own" in watching.seen.problems[0]
    else:
        assert watching.found["host"].match.cgroup == cgroup
        assert (watching.found["host"].service_account, watching.found["host"].address) == ("web", "")
    await of_engine(engine, "rm", "--force", "--time", "0", "host")


async def test_labels_that_make_no_sense_are_named(engine: Podman, watching: Watching) -> None:
    await trio.to_thread.run_sync(lambda: engine.run("odd", "--network=none", port="80"))
    await watching.wait(lambda: bool(watching.seen.problems), 5)
    (problem,) = watching.seen.problems
    assert problem == "container odd: label culvert.io/port: there is no such label; did you mean ports?"
    await of_engine(engine, "rm", "--force", "--time", "0", "odd")


async def test_one_that_shares_anothers_namespace_is_named(engine: Podman, watching: Watching) -> None:
    await trio.to_thread.run_sync(lambda: engine.run("first", "--network=none", labels="a=b"))
    await trio.to_thread.run_sync(lambda: engine.run("second", "--network=container:first", labels="a=b"))
    await watching.wait(lambda: bool(watching.seen.problems), 5)
    assert "it shares its network namespace with" in watching.seen.problems[0]
    assert len({"first", "second"} & set(watching.found)) == 1
    for name in ("second", "first"):
        await of_engine(engine, "rm", "--force", "--time", "0", name)


async def test_the_engine_restarts(engine: Podman, watching: Watching) -> None:
    """What lives stands meanwhile; what came or went is seen when the engine is back."""
    await trio.to_thread.run_sync(lambda: engine.run("lives", "--network=none", labels="a=b"))
    await trio.to_thread.run_sync(lambda: engine.run("dies", "--network=none", labels="a=b"))
    await watching.wait(lambda: {"lives", "dies"} <= set(watching.found), 5)
    before = watching.found["lives"]
    await trio.to_thread.run_sync(engine.rest)
    await watching.wait(lambda: not watching.seen.whole, 2)
    await of_engine(engine, "rm", "--force", "--time", "0", "dies")
    await watching.wait(lambda: set(watching.found) == {"lives"}, 2)
    await trio.to_thread.run_sync(lambda: engine.run("new", "--network=none", labels="a=b"))
    await trio.to_thread.run_sync(engine.serve)
    await watching.wait(lambda: set(watching.found) == {"lives", "new"} and watching.seen.whole, 3)
    assert (watching.found["lives"], watching.seen.problems) == (before, ())
    for name in ("lives", "new"):
        await of_engine(engine, "rm", "--force", "--time", "0", name)


async def test_no_engine_is_no_containers_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(containers, "ABSENT", 1.0)
    watching = Watching(Containers("n1", (tmp_path / "none.sock",), tmp_path / "netns", lambda: None, lambda _: None))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watching.source.run, watching.publish)
        took = await watching.wait(lambda: watching.seen.whole, 3)
        nursery.cancel_scope.cancel()
    assert took >= 1
    assert watching.seen == Seen()


GARBAGE = (
    b"",
    b"\xff" * 100,
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[1",
    b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n[1]",
    b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
)


async def _events(engine: Engine) -> None:
    async with engine.events() as events:
        while True:
            await events.happened()


@pytest.mark.parametrize("said", GARBAGE)
async def test_garbage_is_an_error_of_the_engine(tmp_path: Path, said: bytes) -> None:
    path = tmp_path / "garbage.sock"

    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(said)

    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(str(path))
        listening.listen(5)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, answer, [trio.SocketListener(listening)])
            with pytest.raises(EngineError, match=r"garbage\.sock"):
                await Engine(path).containers()
            with pytest.raises(EngineError):
                await _events(Engine(path))
            nursery.cancel_scope.cancel()


def test_links_are_exactly_those(tmp_path: Path) -> None:
    folder = tmp_path / "netns"
    assert not relink(folder, {})
    wanted = {str(folder / "a"): "/proc/1/ns/net", str(folder / "b"): "/proc/2/ns/net"}
    assert relink(folder, wanted)
    assert not relink(folder, wanted)
    assert relink(folder, {str(folder / "a"): "/proc/3/ns/net"})
    assert {p.name: os.readlink(p) for p in folder.iterdir()} == {"a": "/proc/3/ns/net"}


def test_names_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
    labels = {"culvert.io/name": "../../etc", "culvert.io/namespace": ".."}
    with pytest.raises((ValueError, OSError)):
        described(Container("x", "/x", State(os.getpid()), Config(labels)), "n1", tmp_path)


def test_who_gets_the_id_of_its_process_later_is_not_the_container(tmp_path: Path) -> None:
    with namespace() as name:
        before = time.clock_gettime(time.CLOCK_BOOTTIME)
        time.sleep(0.05)
        with in_namespace(name, lambda: subprocess.Popen(["sleep", "60"])) as process:
            try:
                container = Container("x", "/x", State(process.pid), heard=before)
                with pytest.raises(ProcessLookupError):
                    described(container, "n1", tmp_path)
                heard = time.clock_gettime(time.CLOCK_BOOTTIME)
                assert described(msgspec.structs.replace(container, heard=heard), "n1", tmp_path).pid == process.pid
            finally:
                process.kill()
