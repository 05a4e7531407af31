"""A private world: as root and as an ordinary user, and every way in which its owner can end."""

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from agent.lab.process import eventually
from tests.netns.ordinary import environment, ordinary_python

OUTSIDE = (
    "import sys; from agent.lab import world; world.check(); sys.exit(world.run('tests.netns.guest', sys.argv[1:]))"
)


@pytest.fixture(params=["root", "user"])
def who(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def outside(who: str) -> Iterator[list[str]]:
    with ordinary_python() as ordinary:
        yield [*([sys.executable] if who == "root" else ordinary), "-c", OUTSIDE]


def test_a_lab_works_inside_and_the_status_comes_back(who: str, outside: list[str]) -> None:
    done = subprocess.run(outside, env=environment(), capture_output=True, text=True, timeout=30)
    assert done.stdout, done.stderr
    pid, privilege, said = done.stdout.splitlines()[0].split(maxsplit=2)
    assert pid == "1"
    assert privilege == who
    assert "'greets'" in said
    assert done.stdout.splitlines()[-1] == "left"
    assert done.returncode == 7


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
async def test_the_inside_cleans_up_however_the_owner_ends(outside: list[str], number: signal.Signals) -> None:
    owner = await trio.lowlevel.open_process([*outside, "stay"], env=environment(), stdout=subprocess.PIPE)
    said = b""
    with trio.fail_after(30):
        async with owner.stdout:
            while b"\n" not in said:
                more = await owner.stdout.receive_some()
                assert more, said
                said += more
            owner.send_signal(number)
            rest = b"".join([data async for data in owner.stdout])
        assert b"greets" in said
        assert rest == b"told to end\nleft\n"
        assert await eventually(lambda: owner.poll() is not None)
    assert owner.returncode == (-number if number == signal.SIGKILL else 130)
