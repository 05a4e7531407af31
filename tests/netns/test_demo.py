"""`culvert demo` as its readers meet it: as root and as an ordinary user, to the end and broken off."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from agent.lab.namespace import DIRECTORY
from agent.lab.process import eventually
from redirect.cgroup import mount_point
from tests.netns.ordinary import UID, environment, ordinary_python

AS_USER = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--bounding-set=-all"]


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def demo(who: str) -> Iterator[list[str]]:
    """The command line, as one of two kinds of people."""
    with ordinary_python() as ordinary:
        yield [*([sys.executable] if who == "root" else ordinary), "-m", "agent.cli", "demo"]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    before = _traces()
    yield
    assert not _traces() - before


def _traces() -> set[Path]:
    """What labs have left on this machine whose owner is gone; others may run beside this test."""
    mount = mount_point()
    places = [Path("/tmp"), DIRECTORY, *([Path(mount)] if mount else [])]
    found = {path for place in places for path in place.glob("cv*x*")}
    return {path for path in found if not Path("/proc", path.name[2:].partition("x")[0]).exists()}


def test_the_summary_holds_what_the_demo_claims(who: str, demo: list[str]) -> None:
    begin = time.monotonic()
    # Whoever works with a mesh of his own has these.
    elsewhere = {"CULVERT_CREDENTIAL": "/nowhere.json", "CULVERT_CENTRAL_LISTEN": "192.0.2.1:1"}
    done = subprocess.run(
        [*demo, "--json"], env={**environment(), **elsewhere}, capture_output=True, text=True, timeout=100
    )
    took = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    names = {"web", "cart", "front", "store", "mail"} if who == "root" else {"cart", "front", "store", "mail"}
    assert set(summary) == {
        "requests",
        "ok",
        "plaintext_bytes_before",
        "plaintext_bytes_after",
        "tls_bytes_after",
        "refused",
        "identities",
        "survived_centre_loss",
    }
    assert summary["requests"] == summary["ok"] >= 16
    assert summary["plaintext_bytes_before"] > 100_000
    assert summary["plaintext_bytes_after"] == 0
    assert summary["tls_bytes_after"] >= summary["plaintext_bytes_before"]
    assert summary["refused"] >= 1
    assert summary["identities"] == sorted(f"spiffe://demo.example/ns/shop/sa/{name}" for name in names)
    assert summary["survived_centre_loss"] is True
    assert "✓ after" in done.stderr
    assert took < 60, f"{took:.0f} s; 30 are promised on a machine that does nothing else"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_broken_off_in_the_middle_it_leaves_nothing(demo: list[str], number: signal.Signals) -> None:
    process = await trio.lowlevel.open_process(demo, env=environment(), stdout=subprocess.PIPE)
    said = b""
    with trio.fail_after(60):
        async with process.stdout:
            while b"join" not in said:
                more = await process.stdout.receive_some()
                assert more, said
                said += more
            process.send_signal(number)
            async for _ in process.stdout:
                pass
        assert await eventually(lambda: process.poll() is not None)
    assert process.returncode == 130


def _environment_of(pid: int) -> dict[str, str]:
    """A shell of the reader's: that of the demo."""
    pairs = Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0")
    return dict(pair.split("=", 1) for pair in pairs)


def _reads_well_on_a_page(said: str, who: str) -> None:
    assert [line for line in said.splitlines() if len(line) > 80] == []
    for text in ("uid 64101", "cgroup cart.service") if who == "root" else ("As root, uids and cgroups",):
        assert text in said
    for command in ("workloads", "connections", "tunnels", "certificates", "status"):
        assert f"$ culvert {command}" in said


async def test_it_reads_well_on_a_page_and_can_be_looked_around(who: str, demo: list[str]) -> None:
    process = await trio.lowlevel.open_process([*demo, "--keep"], env=environment(), stdout=subprocess.PIPE)
    said = b""
    with trio.fail_after(100):
        async with process.stdout:
            while b"Ctrl-C here" not in said:
                more = await process.stdout.receive_some()
                assert more, said.decode()
                said += more
            page, _, more_to_see = said.decode().partition("In another terminal:")
            _reads_well_on_a_page(page, who)
            lines = more_to_see.splitlines()
            commands = [line.strip() for line in lines if line.startswith("  ")]
            alias, *rest = commands
            assert alias.startswith("alias at='nsenter ")
            assert len(rest) >= 4
            enter = alias.removeprefix("alias at='").removesuffix("'")
            for command in rest:
                line = ["sh", "-c", command.replace("at ", f"{enter} ", 1)]
                ran = await trio.run_process(
                    line if who == "root" else [*AS_USER, *line],
                    capture_stdout=True,
                    check=False,
                    env=_environment_of(int(enter.split()[2])),
                )
                assert ran.returncode == 0, line
                assert ran.stdout.strip(), line
            process.send_signal(signal.SIGINT)
            async for _ in process.stdout:
                pass
        assert await eventually(lambda: process.poll() is not None)
