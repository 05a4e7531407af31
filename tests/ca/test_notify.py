import os
import socket
from pathlib import Path

import pytest
import trio

from ca.notify import keep_watchdog, notify, watchdog_period


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    name = str(tmp_path / "notify") if request.param == "path" else f"@culvert-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind("\0" + name[1:] if name.startswith("@") else name)
        s.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield s


def test_the_state_arrives(manager: socket.socket) -> None:
    notify("READY=1")
    assert manager.recv(100) == b"READY=1"


def test_nobody_asked(manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/notify")
    notify("READY=1")
    manager.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.recv(100)


async def test_the_watchdog_hears_from_us_twice_a_period(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    assert watchdog_period() == 30
    with trio.move_on_after(31):
        await keep_watchdog()
    assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3


async def test_no_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    with trio.fail_after(5):
        await keep_watchdog()
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert watchdog_period() == 30
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    assert watchdog_period() == 0
