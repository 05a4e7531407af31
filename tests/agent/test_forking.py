"""Real forks, of a process of their own: pytest's has threads."""

import subprocess
import sys
from pathlib import Path

import pytest

from agent.forking import SHARED

ROOT = Path(__file__).parents[2]

BEFORE = """
import os, signal, socket, sys
from pathlib import Path
from agent.forking import fork_workers

secret = open("/etc/hostname")
def status(forked):
    forked.sock.close()
    return os.waitstatus_to_exitcode(os.waitpid(forked.pid, 0)[1])
"""


def run(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", BEFORE + text], cwd=ROOT, capture_output=True, text=True, timeout=30)


def outcome(text: str) -> list[str]:
    done = run(text)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.splitlines()


def test_a_worker_has_its_channel_and_nothing_else() -> None:
    said = outcome("""
def serve(channel):
    with socket.socket(fileno=channel) as sock:
        held = {int(fd): os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{fd}")}
        sock.send(repr((held[0], sorted(held.keys() - {0, 1, 2}) == [channel])).encode())
        sock.recv(1)
for each in fork_workers(serve, 2):
    print(*eval(each.sock.recv(1000)), status(each))
""")
    assert said == ["/dev/null True 0"] * 2


def test_a_worker_has_a_name() -> None:
    assert outcome("""
def serve(channel):
    socket.socket(fileno=channel).recv(1)
[forked] = fork_workers(serve, 1)
while (comm := Path(f"/proc/{forked.pid}/comm").read_text()) != "culvert-worker\\n":
    assert Path("/proc/self/comm").read_text() == comm
while (line := Path(f"/proc/{forked.pid}/cmdline").read_bytes().rstrip(b"\\0")) != b"culvert: worker":
    assert Path("/proc/self/cmdline").read_bytes().rstrip(b"\\0") == line
status(forked)
print("as it should")
""") == ["as it should"]


def test_an_interrupt_from_the_terminal_is_not_for_workers() -> None:
    assert outcome("""
def serve(channel):
    sock = socket.socket(fileno=channel)
    while data := sock.recv(1):
        sock.send(data)
[forked] = fork_workers(serve, 1)
def answers():
    forked.sock.send(b"x")
    return forked.sock.recv(1) == b"x"
assert answers()
os.kill(forked.pid, signal.SIGINT)
print(answers(), status(forked))
""") == ["True 0"]


def test_it_ends_as_a_program_would() -> None:
    done = run("""
def serve(channel):
    try:
        socket.socket(fileno=channel).recv(1)
    finally:
        raise how
for how in (SystemExit(0), SystemExit(None), SystemExit(7), SystemExit("the reason"), ValueError("a bug")):
    [forked] = fork_workers(serve, 1)
    print(status(forked))
print("and nobody else ends")
""")
    assert done.returncode == 0
    assert done.stdout.splitlines() == ["0", "0", "7", "1", "1", "and nobody else ends"]
    assert done.stderr.startswith("the reason\nTraceback")
    assert done.stderr.endswith("ValueError: a bug\n")


def test_when_the_kernel_gives_no_more_there_are_fewer() -> None:
    assert outcome("""
fork, given = os.fork, iter([True, False])
def limited():
    if next(given):
        return fork()
    raise BlockingIOError(11, "Resource temporarily unavailable")
os.fork = limited
forked = fork_workers(lambda channel: None, 3)
print(len(forked), *map(status, forked))
""") == ["1 0"]


def test_a_supervisor_that_cannot_start_leaves_no_worker() -> None:
    done = run("""
import trio
from agent.cli.run import _worker
[forked] = fork_workers(_worker, 1)
print(status(forked))
""")
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.parametrize("side", ["agent.worker.worker", "agent.node.supervisor"])
def test_both_sides_import_what_they_share(side: str) -> None:
    code = f"import sys, {side}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(SHARED) <= set(done.stdout.split())
