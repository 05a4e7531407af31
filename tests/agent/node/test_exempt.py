"""Where people log in, found from the kernel."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.node.exempt import Exempt, Exemptions, _named, logged_in_remotely

_LISTEN = """
import ctypes, socket, sys
ctypes.CDLL(None).prctl(15, sys.argv[1].encode())
s = socket.socket(); s.bind((sys.argv[2], 0)); s.listen(); print(s.getsockname()[1], flush=True); sys.stdin.read()
"""


@contextmanager
def listening(name: str, address: str, uid: int = 0) -> Iterator[int]:
    """A process of that name, with a socket of that user's."""
    line = ["setpriv", f"--reuid={uid}", "--clear-groups", "/usr/bin/python3", "-c", _LISTEN, name, address]
    process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


def test_sshd_is_found_wherever_it_listens() -> None:
    exemptions = Exemptions("10.0.0.9:443", [2022], [])
    with listening("sshd", "0.0.0.0") as everywhere, listening("dropbear", "127.0.0.2") as there:
        found = exemptions.look()
        assert found.ports >= {everywhere, 2022}
        assert found.pairs >= {("127.0.0.2", there), ("10.0.0.9", 443)}
        assert found.holds("10.9.9.9", everywhere)
        assert not found.holds("10.9.9.9", there)
        assert any(f"port {there} at 127.0.0.2 of this machine: dropbear, pid" in word for word in found.words)
    after = exemptions.look()
    assert not {everywhere, there} & after.ports
    assert ("10.0.0.9", 443) in after.pairs


def test_who_merely_calls_itself_sshd_is_not() -> None:
    """A user's program, or a port forwarded in a user's session, exempts nothing."""
    with listening("sshd", "0.0.0.0", 64321) as port:
        assert port not in Exemptions("10.0.0.9:443", (), []).look().ports


def test_what_else_root_runs_is_not() -> None:
    with listening("nginx", "0.0.0.0") as port:
        assert port not in Exemptions("10.0.0.9:443", (), []).look().ports


def test_ports_are_read_from_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "sshd_config").write_text(
        "#Port 1\nPort 2222\n port  2223\nListenAddress 10.0.0.1:2224\nListenAddress 10.0.0.1\n"
        "ListenAddress [fd00::1]:2225\nPermitRootLogin no\nMaxSessions 7\n"
    )
    (tmp_path / "ssh.socket").write_text(
        "[Socket]\nListenStream=\nListenStream=2226\nListenStream=0.0.0.0:2227\nListenStream=99999\n"
    )
    (tmp_path / "bad.conf").write_bytes(b"\xff\xfe Port 9\n")
    assert set(_named([f"{tmp_path}/*"])) == {2222, 2223, 2224, 2225, 2226, 2227}


def test_before_sshd_has_started_its_configuration_counts(tmp_path: Path) -> None:
    (tmp_path / "sshd_config").write_text("Port 2222\n")
    exemptions = Exemptions("10.0.0.9:443", [2022], [f"{tmp_path}/*"])
    assert 2222 not in exemptions.look().ports
    assert exemptions.expected().ports >= {2022, 2222}
    assert ("10.0.0.9", 443) in exemptions.expected().pairs


def test_a_centre_by_name_is_looked_up_apart() -> None:
    exemptions = Exemptions("localhost:443", (), [])
    assert exemptions.named
    assert ("127.0.0.1", 443) not in exemptions.look().pairs
    exemptions.resolve()
    assert ("127.0.0.1", 443) in exemptions.look().pairs
    assert not Exemptions("[fd00::1]:443").named
    broken = Exemptions("no.such.name.invalid:1", (), [])
    broken.resolve()
    assert broken.look().pairs == Exempt().pairs


def test_where_the_operator_came_in() -> None:
    exemptions = Exemptions("10.0.0.9:443", (), [])
    exemptions.came_in("10.0.0.1", 4022)
    exemptions.came_in("fe80::1%eth0", 4022)
    assert exemptions.look().holds("10.0.0.1", 4022)
    assert exemptions.look().holds("fe80::1", 4022)
    before = exemptions.look()
    for address, port in (("zz", 22), ("", 22), ("10.0.0.1", 70000), ("10.0.0.1", 0)):
        exemptions.came_in(address, port)
    assert exemptions.look() == before


def test_a_remote_login_is_told_by_its_parents_when_sudo_cleared_the_surroundings() -> None:
    assert logged_in_remotely(1, ["SSH_TTY"])
    assert not logged_in_remotely(1, [])
    script = f"import os, sys; sys.path.insert(0, {os.getcwd()!r}); from agent.node.exempt import logged_in_remotely\n"
    script += "print(logged_in_remotely(os.getpid(), []))"
    parent = "import ctypes, subprocess, sys; ctypes.CDLL(None).prctl(15, b'sshd-session')\n"
    parent += f"subprocess.run([{sys.executable!r}, '-c', sys.argv[1]])"
    done = subprocess.run([sys.executable, "-c", parent, script], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
