"""Telling systemd how a service is (sd_notify(3)): READY, STOPPING, and a word at half of each watchdog period."""

import contextlib
import os
import socket

import trio


def notify(state: str) -> None:
    """Send `state`, as in READY=1, to whoever started us; does nothing when nobody asked. Never raises: a service that
    works must not fail over its supervisor."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
        s.setblocking(False)
        s.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)


def watchdog_period() -> float:
    """Seconds within which systemd wants a word from this process; 0 if it does not."""
    with contextlib.suppress(ValueError):
        if os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            return int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    return 0.0


async def keep_watchdog() -> None:
    """Send WATCHDOG=1 until cancelled; when the event loop hangs it stops by itself, which is the point. Returns at
    once if no watchdog was asked for."""
    period = watchdog_period()
    while period:
        notify("WATCHDOG=1")
        await trio.sleep(period / 2)
