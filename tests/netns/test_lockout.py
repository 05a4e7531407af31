"""Nobody is locked out: a real sshd stays reachable whatever is captured, and a trial of capture ends by itself."""

import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from agent.lab import programs
from agent.lab.place import Place
from agent.lab.process import Process
from tests.netns.node import API, Pair, pair, soon, workload
from tests.promises import not_even_once

pytestmark = pytest.mark.skipif(
    shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin") is None, reason="apt-get install openssh-server"
)

CONFIG = """
Port {port}
ListenAddress 0.0.0.0
ListenAddress ::
HostKey {directory}/host
AuthorizedKeysFile {directory}/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
PasswordAuthentication no
SetEnv PYTHONPATH={path}
"""


class Shell:
    """A login on machine two, over the wire, from machine one's namespace: what is typed runs there."""

    def __init__(self, two: Pair, port: int, directory: Path) -> None:
        self.line = [
            "nsenter", f"--net={two.one.machine.namespace.path}",
            "ssh", "-q", "-i", f"{directory}/key", "-p", str(port), "-o", "StrictHostKeyChecking=no",
            "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=10", f"root@{two.two.machine.address}",
        ]  # fmt: skip

    async def says(self, command: str) -> str:
        """A fresh login that runs the command; empty when there is no getting in."""
        done = await trio.run_process([*self.line, command], capture_stdout=True, capture_stderr=True, check=False)
        return done.stdout.decode().strip()

    @asynccontextmanager
    async def open(self) -> AsyncIterator[trio.Process]:
        """A login that stays, with a shell on its pipes."""
        run = partial(trio.run_process, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False)
        async with trio.open_nursery() as nursery:
            yield await nursery.start(run, [*self.line, "sh"])
            nursery.cancel_scope.cancel()


async def let_in(shell: Shell) -> None:
    """Assert that there is getting in."""
    with not_even_once():
        assert await shell.says("echo in") == "in"


async def still_in(login: trio.Process) -> None:
    """Assert that an open shell answers."""
    assert login.stdin
    assert login.stdout
    await login.stdin.send_all(b"echo still\n")
    answer = b""
    with trio.move_on_after(15):
        answer = await login.stdout.receive_some()
    with not_even_once():
        assert answer == b"still\n"


@asynccontextmanager
async def sshd(two: Pair, port: int) -> AsyncIterator[tuple[Process, Shell]]:
    """A real sshd on machine two."""
    directory = two.lab.directory / f"ssh{port}"
    directory.mkdir(mode=0o700)
    for key in ("host", "key"):
        await trio.run_process(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / key])
    path = two.two.env["PYTHONPATH"]
    (directory / "config").write_text(CONFIG.format(port=port, directory=directory, path=path))
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    process = two.lab.start(
        f"sshd{port}", Place(two.two.machine.namespace), ["/usr/sbin/sshd", "-D", "-e", "-f", directory / "config"]
    )
    await process.listening(port)
    try:
        yield process, Shell(two, port, directory)
    finally:
        await process.end()


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


async def off(two: Pair) -> bool:
    return not await two.rules(two.two.machine)


@pytest.mark.parametrize("port", [22, 2222])
async def test_ssh_works_throughout(two: Pair, port: int) -> None:
    """Even where somebody claims its port for a workload, in a mesh that captures everything, with the agent killed."""
    async with sshd(two, port) as (_, shell), shell.open() as login:
        assert await shell.says("echo in") == "in"
        if port != 22:
            claim = workload("claim", "two", {"uid": 64777}, port)
            await two.apply(claim, workload("rooted", "one", {"uid": 0}))
        await two.mesh.apply(
            "kind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: demo.example, mode: STRICT, egress: registry-only}"
        )
        await two.enrol(*(["web", "api", "claim", "rooted"] if port != 22 else ["web", "api"]))
        assert "table inet culvert" in await two.rules(two.two.machine)
        await still_in(login)
        node = two.two
        if port != 22:
            status = await two.ask(node, "status")
            assert any(f"port {port} of {node.machine.address} is never captured" in p for p in status["problems"])
            plan = await two.mesh.on(node, "capture", "plan")
            assert f"port {port} at all addresses of this machine: sshd, pid " in plan
            # From a machine that captures nothing: that one's own captured root is its mesh's business.
            await two.enrol("rooted", value=None)
        await let_in(shell)
        assert node.process
        await node.process.kill()
        await let_in(shell)
        await still_in(login)


async def test_an_sshd_that_starts_later_is_found_within_seconds(two: Pair) -> None:
    await two.apply(workload("claim", "two", {"uid": 64777}, 2022))
    await two.mesh.apply(
        "kind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: demo.example, mode: STRICT, egress: bypass}"
    )
    await two.enrol("claim")
    async with sshd(two, 2022) as (_, shell):
        # Whoever only asks what would be done looks as well, and keeps nobody from doing it.
        await two.mesh.on(two.two, "capture", "plan")

        async def reached() -> bool:
            return await shell.says("echo in") == "in"

        assert await soon(reached, 5)


async def test_a_trial_that_nobody_confirms(two: Pair) -> None:
    await two.mesh.on(two.two, "capture", "off")
    await two.enrol()
    plan = await two.mesh.on(two.two, "capture", "plan")
    assert "#   shop/api: what uid 64002 sends to the mesh goes to the agent, port 15100" in plan
    assert "+table inet culvert {" in plan
    assert await off(two)
    said = await two.mesh.on(two.two, "capture", "apply", "--confirm", "12s")
    assert "capture is on for 12 s: 1 workloads are captured" in said
    assert not await off(two)
    assert "capture is being tried already" in await two.mesh.on(two.two, "capture", "apply", "--confirm", "9s")
    assert (await two.ask(two.two, "capture"))["trial"] > 0
    assert await soon(lambda: off(two), 20)
    assert "nothing to confirm: capture is off" in await two.mesh.on(two.two, "capture", "confirm")
    process = two.two.process
    assert process
    await process.until(lambda: "capture-rolled-back" in process.output(), "say that capture is rolled back", 10)


async def test_a_trial_that_is_confirmed(two: Pair) -> None:
    await two.mesh.on(two.two, "capture", "off")
    await two.enrol()
    await two.mesh.on(two.two, "capture", "apply", "--confirm", "60s")
    assert "@trial" in await two.rules(two.two.machine)
    assert "capture is on: 1 workloads" in await two.mesh.on(two.two, "capture", "confirm")
    assert "trial" not in await two.rules(two.two.machine)
    await two.two.process.end()
    await two.mesh.start_agent(two.two)
    assert "table inet culvert" in await two.rules(two.two.machine)
    assert "nothing to change" in (await two.mesh.try_on(two.two, "capture", "plan")).errors
    assert (await two.talk()).startswith("220 api greets")


@pytest.mark.parametrize("back", [True, False], ids=["restarted", "dead"])
async def test_a_trial_ends_whoever_dies(two: Pair, back: bool) -> None:
    """The operator tries it in a login of his own; the login is lost, the agent is killed, and nobody does anything."""
    node = two.two
    place = Place(node.machine.namespace, API)
    async with sshd(two, 2222) as (daemon, shell), listening(two) as address:
        await two.mesh.on(node, "capture", "off")
        await two.enrol()
        assert await heard(place, address)
        # The operator's session: its surroundings are those of sshd.
        line = " ".join(f"{k}={v}" for k, v in node.env.items() if k.startswith("CULVERT"))
        said = await shell.says(f"{line} {sys.executable} -m agent.cli capture apply --confirm 15s")
        began = trio.current_time()
        assert "capture is on for 15 s" in said
        daemon.sweep()
        assert node.process
        await node.process.kill()
        # api is captured while the trial lasts, and nobody is there to carry it; afterwards its way is free.
        assert not await heard(place, address)
        if back:
            await two.mesh.start_agent(node)
        await trio.sleep_until(began + 16)
        assert await heard(place, address)
        if not back:
            await two.mesh.start_agent(node)
        assert await soon(lambda: off(two)), "a trial that was not confirmed is off after a restart"
        assert not (await two.ask(node, "capture"))["on"]


@asynccontextmanager
async def listening(two: Pair) -> AsyncIterator[str]:
    """A program at a mesh address on machine one, which its own agent leaves alone as long as it is not enrolled."""
    await two.apply(workload("open", "one", {"uid": 64778}, 9191))
    await two.enrol("open")
    process = two.lab.start(
        "open", Place(two.one.machine.namespace, 64778), programs.greeter(two.one.machine.address, 9191, "open")
    )
    await process.listening(9191)
    yield two.one.machine.address


async def heard(place: Place, address: str) -> bool:
    ran = await programs.run(place, programs.hear(address, 9191, "ho"), 5)
    return ran.ok
