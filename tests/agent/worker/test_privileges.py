"""What a worker can no longer do. In a process of its own: what is dropped does not come back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = 65534
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason=f"only root has privileges to drop (this is {os.geteuid()})")


def child(script: str, *, uid: int = NOBODY, gid: int = NOBODY) -> str:
    """Run `script` after `drop`; -> its output."""
    # Everything is imported before: the account may not read where Python is installed.
    dropping = f"privileges.drop({uid}, {gid}, privileges.CAP_NET_RAW)"
    text = f"import socket, redirect.origdst\nfrom agent.worker import privileges\n{dropping}\n{script}"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def status(text: str) -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


@pytest.mark.parametrize(("uid", "gid"), [(NOBODY, NOBODY), (1234, 4321), (0, 0)])
def test_what_the_kernel_says_of_it(uid, gid):
    facts = status(child("print(open('/proc/self/status').read())", uid=uid, gid=gid))
    assert facts["Uid"].split() == [str(uid)] * 4
    assert facts["Gid"].split() == [str(gid)] * 4
    if uid:
        assert facts["Groups"].strip() == ""
    only = 1 << 13
    assert int(facts["CapEff"], 16) == int(facts["CapPrm"], 16) == int(facts["CapBnd"], 16) == only
    assert int(facts["CapInh"], 16) == int(facts["CapAmb"], 16) == 0
    assert facts["NoNewPrivs"] == "1"


def test_there_is_no_way_back():
    script = """
import os, ctypes
for attempt in (lambda: os.setuid(0), lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0]), lambda: os.setgid(0)):
    try:
        attempt()
        print("came back")
    except PermissionError:
        pass
from agent.worker.privileges import _Data, _Header
everything = (_Data * 2)(_Data(0xffffffff, 0xffffffff, 0), _Data(0xffffffff, 0xffffffff, 0))
print(ctypes.CDLL(None).capset(ctypes.byref(_Header(0x20080522, 0)), ctypes.byref(everything)))
"""
    assert child(script) == "-1\n"


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_a_program_it_starts_has_no_more(uid):
    script = "import os; os.execv('/bin/cat', ['cat', '/proc/self/status'])"
    facts = status(child(script, uid=uid, gid=uid))
    assert int(facts["CapEff"], 16) & ~(1 << 13) == 0
    assert int(facts["CapPrm"], 16) & ~(1 << 13) == 0
    assert facts["Uid"].split()[0] == str(uid)


def test_it_can_still_mark_and_borrow():
    script = """
import socket
from redirect.origdst import dial_socket, spoof_socket
dial_socket(socket.AF_INET, 0xC0170001).close()
spoof_socket(socket.AF_INET, 0xC0170002, "192.0.2.7").close()
try:
    socket.create_server(("127.0.0.1", 80))
    print("bound")
except PermissionError:
    print("refused")
"""
    out = child(script)
    ports = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    assert out == ("refused\n" if ports > 80 else "bound\n")
