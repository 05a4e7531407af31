"""The lab itself: what the other tests stand on."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio

from agent.lab import programs
from agent.lab.lab import Lab, open_lab
from agent.lab.namespace import DIRECTORY
from agent.lab.orphans import remove_orphans
from agent.lab.place import Place, remove_cgroup
from agent.lab.process import ProcessError, eventually
from agent.lab.sniffer import sniff
from redirect.cgroup import mount_point

WORD = "marker-of-this-run"


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    async with open_lab() as lab:
        yield lab


async def test_everybody_reaches_everybody_by_both_families(lab: Lab) -> None:
    one, two = lab.topology.machine("one"), lab.topology.machine("two")
    pods = [lab.topology.pod(one, "p"), lab.topology.pod(one, "q"), lab.topology.pod(two, "r")]
    hosts = [one, two, *pods]
    for there in hosts:
        for address in (there.address, there.address6):
            server = lab.start("greeter", Place(there.namespace), programs.greeter(address, 7000, WORD))
            await server.listening(7000)
            for here in hosts:
                said = await programs.run(Place(here.namespace), programs.hear(address, 7000, "ho"))
                assert f"{WORD} greets" in said.output.decode(), said.errors
                assert said.output.endswith(b"ho")
            await server.end()


async def test_the_leak_counter_is_seen_counting(lab: Lab, tmp_path: Path) -> None:
    one, two = lab.topology.machine("one"), lab.topology.machine("two")
    body = WORD.encode() * 10_000
    (lab.directory / "file").write_bytes(body)
    web = lab.start("web", Place(two.namespace), programs.web_server(two.address, 8080, lab.directory))
    await web.listening(8080)
    async with sniff(lab.topology, one.port) as sniffer:
        sniffer.restart(WORD.encode())
        got = await programs.run(Place(one.namespace), programs.get(f"http://{two.address}:8080/file"))
        sniffer.drain()
        assert got.output == body
        assert sniffer.leaks.clear == len(body)
        assert sniffer.leaks.tunnelled == 0
        assert sniffer.lost == 0


async def test_a_program_runs_where_it_was_put(lab: Lab) -> None:
    one = lab.topology.machine("one")
    cgroup = lab.cgroup("web")
    report = "import os; print(os.getuid(), os.readlink('/proc/self/ns/net'), open('/proc/self/cgroup').read())"
    ran = await programs.run(Place(one.namespace, 64123, cgroup), [programs.SYSTEM_PYTHON, "-c", report])
    uid, net, *groups = ran.output.decode().split()
    assert uid == "64123"
    assert net == f"net:[{one.namespace.path.stat().st_ino}]"
    assert f"0::/{cgroup}" in groups


async def test_a_socket_can_be_made_for_another_namespace_and_uid(lab: Lab) -> None:
    one = lab.topology.machine("one")
    with one.namespace.socket(uid=64123) as sock:
        assert os.fstat(sock.fileno()).st_uid == 64123
        sock.bind((one.address, 0))
    with socket.socket() as outside, pytest.raises(OSError, match="assign"):
        outside.bind((one.address, 0))


async def test_the_end_of_a_program_is_told_with_its_last_words(lab: Lab) -> None:
    one = lab.topology.machine("one")
    program = lab.start("sad", Place(one.namespace), ["sh", "-c", "echo no luck; exit 3"])
    with pytest.raises(ProcessError, match=r"status 3:\nno luck"):
        await program.listening(1)


async def test_nothing_is_left(lab: Lab) -> None:
    async with open_lab() as inner:
        one = inner.topology.machine("one")
        cgroup = inner.cgroup("web")
        program = inner.start(
            "shell", Place(one.namespace, 64123, cgroup), ["sh", "-c", "sleep 600 & sleep 600 & wait"]
        )
        children = Path(f"/proc/{program.pid}/task/{program.pid}/children")
        assert await eventually(lambda: len(children.read_text().split()) == 2)
        namespaces = [n.name for n in inner.topology.namespaces]
        mount = mount_point()
    assert not program.running
    assert mount is not None
    assert not Path(mount, cgroup).exists()
    assert not inner.directory.exists()
    assert not {p.name for p in DIRECTORY.iterdir()} & set(namespaces)


@pytest.mark.alone  # any other lab that opens removes what the killed one left
async def test_a_program_dies_with_a_killed_owner(lab: Lab) -> None:
    script = """
import sys, trio
from agent.lab.lab import open_lab
from agent.lab.place import Place
from agent.lab.process import eventually
from pathlib import Path
async def main():
    async with open_lab() as lab:
        one = lab.topology.machine("one")
        pid = lab.start("sleeper", Place(one.namespace), ["sleep", "600"]).pid
        assert await eventually(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\\n")
        print(pid, lab.directory, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    root = Path(__file__).parents[2]
    async with trio.open_nursery() as nursery:
        run = partial(
            trio.run_process,
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            check=False,
        )
        owner = await nursery.start(run)
        said = b""
        while not said.endswith(b"\n"):
            more = await owner.stdout.receive_some()
            assert more, said
            said += more
        pid, directory = said.decode().split()
        owner.send_signal(signal.SIGKILL)
    assert await eventually(lambda: not Path("/proc", pid).exists())
    assert Path(directory).exists()
    async with open_lab():  # removes what the killed one left
        assert not Path(directory).exists()
        assert not [p for p in DIRECTORY.iterdir() if p.name.startswith(f"cv{owner.pid}x")]


AMID = """\
import os, subprocess
from agent.lab.namespace import DIRECTORY, Namespace
made = Namespace(f"cv{os.getpid()}x1-early")
made.create()
subprocess.run(["ip", "netns", "add", "cv-other"], check=True)
subprocess.run(["ip", "netns", "delete", "cv-other"], check=True)
made.remove()
print(os.listdir(DIRECTORY))
"""


def test_the_first_namespace_of_somebody_else_does_not_pin_ours() -> None:
    """`ip netns add` and container engines make /run/netns a mount when they first use it; here in a /run apart."""
    run = 'mount -t tmpfs none /run && exec "$0" -c "$1"'
    argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", run, sys.executable, AMID]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_what_an_orphan_still_holds_keeps_nobody_from_a_lab() -> None:
    """A server that daemonised itself outlives the lab that was killed."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    mount = mount_point()
    if mount is None:
        pytest.skip("mount -t cgroup2 none DIRECTORY")
    left = Path(mount, f"cv{gone.pid}x1")
    left.mkdir()
    holder = subprocess.Popen(["sleep", "60"])
    try:
        (left / "cgroup.procs").write_text(str(holder.pid))
        remove_orphans()
        assert left.is_dir()
    finally:
        holder.kill()
        holder.wait()
        remove_cgroup(left.name)
