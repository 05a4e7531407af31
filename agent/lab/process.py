"""A program running in a place, and its end.

Started from the main thread and not through trio's threads: the kernel ties "kill the child with its parent" to the
*thread* that forked, and trio lets idle threads end. Each program leads a session of its own, so that Ctrl-C in the
terminal reaches only us, and so that what it forked can be ended with it.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import trio

from agent.lab.place import Place


class ProcessError(Exception):
    """A program of the lab ended, or did not do what was waited for; the message shows the end of its output."""


async def eventually(done: Callable[[], bool], seconds: float = 5.0) -> bool:
    """Whether `done()` came true in time. For facts that the kernel has no event for: it looks every 10 ms."""
    deadline = trio.current_time() + seconds
    while True:
        if done():
            return True
        if trio.current_time() > deadline:
            return False
        await trio.sleep(0.01)


class Process:
    """One running program; its output goes to the file `log`. Whoever started it calls `end`."""

    def __init__(
        self,
        name: str,
        place: Place,
        argv: Sequence[str | os.PathLike[str]],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name, self.place, self.log = name, place, log
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                place.command(argv, mortal=True),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
                cwd=cwd,
                start_new_session=True,
                pass_fds=pass_fds,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program alone."""
        self._popen.send_signal(number)

    async def wait(self) -> int:
        """Its exit status, as subprocess has it, once it has ended."""
        if self._popen.poll() is None:
            pidfd = os.pidfd_open(self.pid)
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return self._popen.wait()

    async def kill(self) -> None:
        """SIGKILL to the program alone, and wait for its end."""
        if self.running:
            self.signal(signal.SIGKILL)
        await self.wait()

    async def end(self, grace: float = 5.0) -> None:
        """Ask it to end, wait `grace` seconds, then kill it with all it started. Runs to its end when cancelled."""
        with trio.CancelScope(shield=True):
            if self.running:
                self.signal(signal.SIGTERM)
                with trio.move_on_after(grace):
                    await self.wait()
            self.sweep()
            await self.wait()

    def sweep(self) -> None:
        """Kill whatever is left of the program's session. Blocks for nothing."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    async def listening(self, port: int, seconds: float = 10.0) -> None:
        """Wait until something listens on TCP `port` in the program's namespace; ProcessError when it does not."""
        await self.until(lambda: port in self.ports(), f"listen on port {port}", seconds)

    async def until(self, done: Callable[[], bool], what: str, seconds: float) -> None:
        """Wait until `done()`; ProcessError when the program ends first or takes longer than `seconds`."""

        def settled() -> bool:
            return done() or not self.running

        if not await eventually(settled, seconds):
            raise ProcessError(f"{self.name} did not {what} within {seconds:g} s:\n{self.tail()}")
        if not self.running and not done():
            raise ProcessError(f"{self.name} ended with status {self._popen.returncode}:\n{self.tail()}")

    def ports(self) -> set[int]:
        """The TCP ports that are listened on in the program's network namespace."""
        found: set[int] = set()
        process = Path("/proc", str(self.pid))
        for table in ("tcp", "tcp6"):
            try:
                # Until the program has entered its namespace, /proc would show the ports of ours.
                if (process / "ns/net").stat().st_ino != self.place.namespace.path.stat().st_ino:
                    return found
                lines = (process / "net" / table).read_text().splitlines()[1:]
            except OSError:
                continue
            for line in lines:
                _, local, _, state, *_ = line.split()
                if state == "0A":
                    found.add(int(local.rpartition(":")[2], 16))
        return found

    def output(self) -> str:
        """All it has printed so far."""
        return self.log.read_text(errors="replace")

    def tail(self, lines: int = 20) -> str:
        """The end of its output, for messages."""
        return "\n".join(self.output().splitlines()[-lines:])
