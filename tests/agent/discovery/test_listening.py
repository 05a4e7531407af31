"""Real listeners of the kernel, under other uids, in cgroups and in namespaces of the test's own."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import trio

from agent.discovery import listening
from agent.discovery.found import Found
from agent.discovery.listening import Listening, listened
from agent.lab.namespace import Namespace
from agent.lab.place import Place, create_cgroup, remove_cgroup
from ca.resources.metadata import Key
from ca.resources.workload import Match

UID = 64021


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("makes network namespaces: run as root")
    made = Namespace(f"culvert-listening-{os.getpid()}")
    made.create()
    subprocess.run(["nsenter", f"--net={made.path}", "ip", "link", "set", "lo", "up"], check=True)
    try:
        yield made
    finally:
        made.remove()


def found(name: str, match: Match) -> Found:
    return Found("files", name, "shop", name, "web", match)


def listen(namespace: Namespace, port: int, address: str = "0.0.0.0", uid: int | None = None) -> socket.socket:
    sock = namespace.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, uid=uid)
    sock.bind((address, port))
    sock.listen()
    return sock


def inside(namespace: Namespace, match: Match) -> set[int]:
    """What `listened` hears from inside the namespace."""
    key = Key("Workload", "shop", "x")
    return set(namespace.run(lambda: listened({key: match})).get(key, ()))


def test_by_namespace_and_by_user(namespace: Namespace) -> None:
    with contextlib.ExitStack() as stack:
        for port, address, uid in ((80, "0.0.0.0", UID), (81, "::", None), (82, "127.0.0.1", UID), (83, "::1", UID)):
            stack.enter_context(listen(namespace, port, address, uid))
        assert inside(namespace, Match(netns=str(namespace.path))) == {80, 81}
        assert inside(namespace, Match(uid=UID)) == {80}
        assert inside(namespace, Match(uid=UID + 1)) == set()
        client = stack.enter_context(namespace.socket())
        client.connect(("127.0.0.1", 80))
        assert inside(namespace, Match(netns=str(namespace.path))) == {80, 81}
    assert inside(namespace, Match(netns=str(namespace.path))) == set()


def test_a_namespace_that_is_gone_hears_nothing() -> None:
    assert listened({Key("Workload", "a", "b"): Match(netns="culvert-there-is-none")}) == {}


def test_by_cgroup_and_those_below(namespace: Namespace) -> None:
    top = f"culvert-listening-{os.getpid()}"
    script = "import socket, sys; s = socket.create_server(('0.0.0.0', int(sys.argv[1])))"
    script += "; print('up', flush=True); sys.stdin.read()"
    try:
        create_cgroup(f"{top}/below")
    except OSError as error:
        pytest.skip(f"mkdir in cgroup v2: {error}")
    processes = []
    try:
        for cgroup, port in ((top, 90), (f"{top}/below", 91), (None, 92)):
            command = Place(namespace, cgroup=cgroup).command([sys.executable, "-c", script, str(port)])
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            processes.append(process)
            assert process.stdout
            assert process.stdout.readline() == b"up\n"
        assert inside(namespace, Match(cgroup=f"/{top}")) == {90, 91}
        assert inside(namespace, Match(cgroup=f"{top}/below")) == {91}
        assert inside(namespace, Match(cgroup=f"{top}/none")) == set()
    finally:
        for process in processes:
            process.communicate()
        remove_cgroup(f"{top}/below")
        remove_cgroup(top)


async def test_ports_are_live_and_linger(namespace: Namespace) -> None:
    workload = found("x", Match(netns=str(namespace.path)))
    news = trio.Event()
    made = Listening(lambda: news.set(), frozenset({15001}), linger=1.0)

    async def becomes(*ports: int, seconds: float = 1.0) -> float:
        nonlocal news
        started = trio.current_time()
        with trio.fail_after(seconds):
            while made.ports(workload.key) != ports:
                news = trio.Event()
                await news.wait()
        return trio.current_time() - started

    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        made.want([workload, replace(workload, name="declared", ports=(9,))], lambda key: (8080,))
        assert made.ports(workload.key) is None
        await becomes(8080)  # of a former life
        with listen(namespace, 80), listen(namespace, 15001):
            await becomes(80, 8080)
            await becomes(80, seconds=2)
        assert made.ports(workload.key) == (80,)
        with listen(namespace, 80):  # a restart goes unnoticed
            await trio.sleep(1.2)
            assert made.ports(workload.key) == (80,)
        assert await becomes(seconds=2) > 0.3
        made.want([], lambda key: ())
        assert made.ports(workload.key) is None
        nursery.cancel_scope.cancel()


async def test_too_many_ports_are_a_problem(namespace: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listening, "MOST", 2)
    workload = found("x", Match(netns=str(namespace.path)))
    changed = trio.Event()
    made = Listening(changed.set, frozenset(), linger=1.0)
    with listen(namespace, 80), listen(namespace, 81), listen(namespace, 82):
        async with trio.open_nursery() as nursery:
            made.want([workload], lambda key: ())
            nursery.start_soon(made.run)
            with trio.fail_after(2):
                await changed.wait()
            nursery.cancel_scope.cancel()
    assert made.ports(workload.key) == (80, 81)
    assert made.problems == ("workload shop/x: listens at 3 ports, of which only the 2 lowest count; declare them",)
