"""Real processes that speak the channel; see fake_worker."""

import os
import signal
import socket
import sys
from pathlib import Path

import msgspec
import pytest
import structlog
import trio
import trio.testing

from agent.forking import Forked
from agent.messages import Closed, Role
from agent.node import child as child_module
from agent.node.starting import Starter
from agent.node.view import Change, Intake
from agent.node.workers import Workers
from redirect.desired import Marks
from tests.agent.certs import TestRoot
from tests.agent.views import delta, mesh, node, view, workload

WEB = "spiffe://shop.example/ns/shop/sa/web"
FAKE = str(Path(__file__).with_name("fake_worker.py"))


class Node:
    """Workers of a node, with everything they said."""

    def __init__(self, mode: str = "good") -> None:
        self.view = view(mesh(), node("n1"), workload("web"), revision=5)
        self.heard: list[Closed] = []
        self.moved = trio.Event()
        self.workers = Workers(
            "n1", (0, 0), Marks(), self.view, self._told, self._progress, Starter(command=(sys.executable, FAKE, mode))
        )
        self.sock = socket.create_server(("127.0.0.1", 0))

    def _told(self, message: Closed) -> None:
        self.heard.append(message)
        self._progress()

    def _progress(self) -> None:
        self.moved.set()
        self.moved = trio.Event()

    async def until(self, condition) -> None:
        with trio.fail_after(20):
            while not condition():
                await self.moved.wait()

    async def ask(self, sock: socket.socket | None = None) -> dict:
        """What a worker that accepts at the listener knows."""
        with trio.fail_after(20):
            stream = await trio.open_tcp_stream(*(sock or self.sock).getsockname())
            async with stream:
                data = b"".join([part async for part in stream])
        return msgspec.json.decode(data)


def spawn(*arguments: str) -> int:
    """A child that Python knows nothing of."""
    return os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ)


@pytest.fixture
async def made(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    nodes: list[Node] = []

    def make(mode: str = "good") -> Node:
        nodes.append(Node(mode))
        return nodes[-1]

    yield make
    for each in nodes:
        each.sock.close()


async def test_a_worker_learns_everything_before_it_listens(made, nursery):
    n = made()
    n.workers.trust(b"roots")
    n.workers.hold(TestRoot().leaf(WEB))
    n.workers.namespaced({"shop/db": "/run/netns/db"})
    n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
    await nursery.start(n.workers.run, 1)
    facts = await n.ask()
    assert facts["told"][:7] == ["Configure", "Roots", "Identity", "View", "View", "Namespaced", "Signs"]
    assert facts["told"][7] == "Listen"
    assert (facts["roots"], facts["identity"], facts["objects"], facts["revision"]) == ("roots", WEB, 3, 5)
    assert (facts["listeners"], facts["namespaced"]) == (["shop/web"], ["shop/db"])
    assert n.workers.ready == 1
    nursery.cancel_scope.cancel()


async def test_changes_reach_a_running_worker(made, nursery):
    n = made()
    n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
    await nursery.start(n.workers.run, 1)
    await n.until(lambda: n.workers.ready)
    change = Intake(n.view).delta(delta(6, workload("new")))
    assert isinstance(change, Change)
    n.workers.change(change)
    assert await n.workers.active(6, 10)
    facts = await n.ask()
    assert (facts["revision"], facts["objects"]) == (6, 4)
    other = socket.create_server(("127.0.0.1", 0))
    listener = n.workers.listen(Role.OUTBOUND, "shop/new", other)
    assert (await n.ask(other))["listeners"] == ["shop/web", "shop/new"]
    n.workers.unlisten(listener)
    other.close()
    with trio.fail_after(20):
        while (await n.ask())["told"][-1] != "Unlisten":
            pass  # what is queued in a socket is accepted whatever the channel says meanwhile
    nursery.cancel_scope.cancel()


async def test_addresses_are_borrowed_only_when_allowed(made, nursery):
    n = made()
    n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
    await nursery.start(n.workers.run, 1)
    assert (await n.ask())["spoof"] == Marks().spoof
    n.workers.borrow(False)
    with trio.fail_after(20):
        while (await n.ask())["spoof"]:
            pass
    os.kill(n.workers.pids[0], signal.SIGKILL)
    assert (await n.ask())["spoof"] == 0
    n.workers.borrow(True)
    with trio.fail_after(20):
        while not (await n.ask())["spoof"]:
            pass
    nursery.cancel_scope.cancel()


async def test_they_are_told_when_nothing_is_captured_and_waited_for(made, nursery):
    n = made()
    n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
    await nursery.start(n.workers.run, 1)
    assert (await n.ask())["capturing"]
    n.workers.capture(False)
    with trio.fail_after(20):
        await n.workers.caught_up(60)
    assert not (await n.ask())["capturing"]
    os.kill(n.workers.pids[0], signal.SIGSTOP)
    with trio.fail_after(20):
        await n.workers.caught_up(0.1)
    os.kill(n.workers.pids[0], signal.SIGKILL)
    assert not (await n.ask())["capturing"]
    n.workers.capture(True)
    with trio.fail_after(20):
        while not (await n.ask())["capturing"]:
            pass
    nursery.cancel_scope.cancel()


async def test_what_changes_while_a_worker_starts_is_known_to_it_before_it_listens(made, nursery):
    n = made()
    n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
    await nursery.start(n.workers.run, 1)
    assert n.workers.ready == 0
    n.workers.change(Intake(n.view).delta(delta(6, workload("new"))))
    n.workers.namespaced({"shop/db": "/run/netns/db"})
    facts = await n.ask()
    assert facts["told"].index("Listen") == len(facts["told"]) - 1
    assert (facts["revision"], facts["objects"], facts["namespaced"]) == (6, 4, ["shop/db"])
    nursery.cancel_scope.cancel()


async def test_a_killed_worker_is_replaced_and_queued_connections_are_served(made, nursery):
    n = made()
    n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
    await nursery.start(n.workers.run, 1)
    first = await n.ask()
    change = Intake(n.view).delta(delta(6, workload("new")))
    n.workers.change(change)
    with structlog.testing.capture_logs() as logs:
        os.kill(first["pid"], signal.SIGKILL)
        second = await n.ask()
    assert second["pid"] != first["pid"]
    assert second["worker"] != first["worker"]
    assert (second["revision"], second["objects"]) == (6, 4)
    died = next(entry for entry in logs if entry["event"] == "worker-died")
    assert died["how"] == "ended, by signal SIGKILL"
    assert died["restart_in"] == 0
    assert n.workers.restarts == 1
    nursery.cancel_scope.cancel()


async def test_workers_forked_before_are_taken_first_and_replaced_by_programs(made, nursery):
    n = made()
    ours, theirs = socket.socketpair()
    with theirs:
        os.set_inheritable(theirs.fileno(), True)
        pid = spawn(FAKE, "good", str(theirs.fileno()))
    n.workers._starter = Starter([Forked(pid, ours)], (sys.executable, FAKE, "good"))
    n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
    with structlog.testing.capture_logs() as logs:
        await nursery.start(n.workers.run, 1)
        assert (await n.ask())["pid"] == pid
        assert n.workers.pids == [pid]
        os.kill(pid, signal.SIGKILL)
        assert (await n.ask())["pid"] != pid
    assert next(e["how"] for e in logs if e["event"] == "worker-died") == "ended, by signal SIGKILL"
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    nursery.cancel_scope.cancel()


async def test_one_forked_that_ended_before_its_time_is_replaced(made, nursery):
    n = made()
    ours, theirs = socket.socketpair()
    theirs.close()
    pid = spawn("-c", "raise SystemExit(5)")
    n.workers._starter = Starter([Forked(pid, ours)], (sys.executable, FAKE, "good"))
    with structlog.testing.capture_logs() as logs:
        await nursery.start(n.workers.run, 1)
        await n.until(lambda: n.workers.ready == 1)
    assert next(e["pid"] for e in logs if e["event"] == "worker-died") == pid
    nursery.cancel_scope.cancel()


async def test_one_of_two_dies_and_the_other_serves_on(made, nursery):
    n = made()
    n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
    await nursery.start(n.workers.run, 2)
    await n.until(lambda: n.workers.ready == 2)
    connections, tunnels, gauges = await n.workers.tables()
    assert (connections, tunnels, gauges) == ([], [], {"connections": 2})
    os.kill(n.workers.pids[0], signal.SIGKILL)
    assert (await n.ask())["pid"] in n.workers.pids
    await n.until(lambda: n.workers.ready == 2)
    nursery.cancel_scope.cancel()


async def test_one_that_cannot_start_is_tried_again_ever_more_slowly(made, nursery):
    n = made("dead")
    with structlog.testing.capture_logs() as logs:
        await nursery.start(n.workers.run, 1)
        await n.until(lambda: n.workers.restarts == 3)
    died = [entry for entry in logs if entry["event"] == "worker-died"]
    assert [entry["restart_in"] for entry in died] == [0, 0.5, 1.0]
    assert {entry["how"] for entry in died} == {"ended, with status 3"}
    nursery.cancel_scope.cancel()


async def test_while_a_worker_keeps_dying_callers_are_refused_at_once(made, nursery):
    """Those of its own sockets; another worker's go on."""
    n = made("dead")
    other = socket.create_server(("127.0.0.1", 0))
    with other, structlog.testing.capture_logs() as logs:
        n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
        n.workers.listen(Role.OUTBOUND, "shop/web", other, slot=1)
        await nursery.start(n.workers.run, 1)
        await n.until(lambda: n.workers.restarts >= 2)  # from here on there are pauses
        for _ in range(20):
            started = trio.current_time()
            stream = await trio.open_tcp_stream(*n.sock.getsockname())
            async with stream:
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
            if trio.current_time() - started < 0.2:
                break
        else:
            pytest.fail("nobody was refused at once")
        async with await trio.open_tcp_stream(*other.getsockname()) as waiting:
            with trio.move_on_after(0.2) as patience:
                await waiting.receive_some()
            assert patience.cancelled_caught
        await n.until(lambda: any(e["event"] == "refused-without-worker" and e["connections"] for e in logs))
        nursery.cancel_scope.cancel()


async def test_one_that_talks_nonsense_is_killed(made, nursery):
    n = made("mad")
    with structlog.testing.capture_logs() as logs:
        await nursery.start(n.workers.run, 1)
        n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
        await n.until(lambda: n.workers.restarts == 1)
    assert "makes no sense" in next(e["how"] for e in logs if e["event"] == "worker-died")
    nursery.cancel_scope.cancel()


async def test_one_that_hangs_is_killed(made, nursery, monkeypatch):
    monkeypatch.setattr(child_module, "PULSE", 0.05)
    monkeypatch.setattr(child_module, "SILENCE", 0.5)
    n = made("mute")
    with structlog.testing.capture_logs() as logs:
        await nursery.start(n.workers.run, 1)
        await n.until(lambda: n.workers.restarts == 1)
    assert "hung and was killed" in next(e["how"] for e in logs if e["event"] == "worker-died")
    nursery.cancel_scope.cancel()


async def test_one_that_lets_messages_pile_up_is_killed(made, nursery, monkeypatch):
    monkeypatch.setattr(child_module, "QUEUE", 100)
    n = made()
    await nursery.start(n.workers.run, 1)
    await n.until(lambda: n.workers.ready)
    os.kill(n.workers.pids[0], signal.SIGSTOP)
    with structlog.testing.capture_logs() as logs:
        for _ in range(200):
            n.workers.trust(bytes(1 << 16))
        await n.until(lambda: n.workers.restarts == 1)
    assert "hung and was killed" in next(e["how"] for e in logs if e["event"] == "worker-died")
    nursery.cancel_scope.cancel()


async def test_a_listener_may_be_closed_while_a_worker_is_slow_to_take_it(made, nursery):
    """What has its number by then is not the worker's to see."""
    n = made()
    n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
    await nursery.start(n.workers.run, 1)
    await n.until(lambda: n.workers.ready)
    pid = n.workers.pids[0]
    os.kill(pid, signal.SIGSTOP)
    brief = socket.create_server(("127.0.0.1", 0))
    listeners = [n.workers.listen(Role.OUTBOUND, "shop/brief", brief) for _ in range(600)]  # more than a channel holds
    await trio.testing.wait_all_tasks_blocked(0.1)
    for listener in listeners:
        n.workers.unlisten(listener)
    brief.close()
    os.kill(pid, signal.SIGCONT)
    n.workers.trust(b"roots")
    with trio.fail_after(20):
        while (await n.ask())["roots"] != "roots":
            pass
    assert n.workers.pids == [pid]
    nursery.cancel_scope.cancel()


async def test_one_that_ends_by_a_signal_without_a_name(made, nursery):
    n = made()
    await nursery.start(n.workers.run, 1)
    await n.until(lambda: n.workers.ready)
    with structlog.testing.capture_logs() as logs:
        os.kill(n.workers.pids[0], signal.SIGRTMIN + 3)
        await n.until(lambda: n.workers.restarts == 1)
    assert f"by signal {signal.SIGRTMIN + 3}" in next(e["how"] for e in logs if e["event"] == "worker-died")
    nursery.cancel_scope.cancel()


async def test_one_without_a_program(made, nursery):
    n = made()
    n.workers._starter = Starter(command=("/nonexistent/python",))
    with structlog.testing.capture_logs() as logs:
        await nursery.start(n.workers.run, 1)
        await n.until(lambda: n.workers.restarts == 1)
    assert "could not be started" in next(e["how"] for e in logs if e["event"] == "worker-died")
    nursery.cancel_scope.cancel()


async def test_what_workers_say_is_passed_on(made, nursery):
    n = made()
    n.workers.listen(Role.OUTBOUND, "shop/web", n.sock)
    with structlog.testing.capture_logs() as logs:
        await nursery.start(n.workers.run, 1)
        await n.ask()
        await n.until(lambda: n.heard)
    assert [type(m) for m in n.heard] == [Closed]
    notice = next(entry for entry in logs if entry["event"] == "worker-notice")
    assert (notice["log_level"], notice["notice"], notice["facts"]) == ("warning", "hello", {"level": "x"})
    nursery.cancel_scope.cancel()


async def test_tables_of_one_that_is_silent_are_left_out(made, nursery):
    n = made("mute")
    await nursery.start(n.workers.run, 1)
    await n.until(lambda: n.workers.ready)
    assert await n.workers.tables(0.1) == ([], [], {})
    assert not await n.workers.active(1, 0.1)
    nursery.cancel_scope.cancel()


async def test_tables_that_come_in_parts_are_put_together(made, nursery):
    n = made("lengthy")
    await nursery.start(n.workers.run, 1)
    await n.until(lambda: n.workers.ready)
    connections, _, gauges = await n.workers.tables(10)
    assert [c.id for c in connections] == ["1.1", "1.2", "1.3"]
    assert gauges == {"connections": 3}
    nursery.cancel_scope.cancel()


async def test_drained_workers_end_and_are_not_replaced(made):
    n = made()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(n.workers.run, 2)
            await n.until(lambda: n.workers.ready == 2)
            await n.workers.drain(1)
    assert (n.workers.ready, n.workers.restarts) == (0, 0)


async def test_cancelling_leaves_no_process(made):
    n = made()
    async with trio.open_nursery() as nursery:
        await nursery.start(n.workers.run, 2)
        await n.until(lambda: n.workers.ready == 2)
        pids = n.workers.pids
        nursery.cancel_scope.cancel()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
