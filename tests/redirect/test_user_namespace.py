"""What an ordinary user can do in namespaces of one's own, as the demo does without root: all but other uids."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import socket, subprocess
from redirect.kernel import Kernel
from redirect.origdst import dial_socket, listener, original_destination, spoof_socket
from redirect.desired import Capture, Desired, Marks, Recognise

def ip(*words):
    subprocess.run(["ip", *words], check=True)

ip("link", "set", "lo", "up")
ip("link", "add", "eth0", "type", "veth", "peer", "name", "eth1")
ip("addr", "add", "10.77.0.1/24", "dev", "eth0")
ip("link", "set", "eth0", "up")
ip("link", "set", "eth1", "up")
ip("route", "add", "default", "via", "10.77.0.9")

marks, serves = Marks(), (("10.77.0.1", 80),)
captures = Capture("shop/web", Recognise(everything=True), 15101, serves),
desired = Desired(captures, frozenset({("10.77.0.9", 80)}), agent_uids=(0,))
kernel = Kernel()
watch = kernel.watch()
kernel.apply(desired)
assert kernel.differences(desired) == []
assert watch.foreign() == []

agent = listener(socket.AF_INET, "127.0.0.1", 15101, marks.agent)
agent.settimeout(5)
client = socket.create_connection(("10.77.0.9", 80), 5)
assert original_destination(agent.accept()[0]) == ("10.77.0.9", 80)
print("captured")

application = listener(socket.AF_INET, "0.0.0.0", 80)
application.settimeout(5)
for sock in (dial_socket(socket.AF_INET, marks.agent), spoof_socket(socket.AF_INET, marks.spoof, "198.51.100.7")):
    sock.settimeout(5)
    sock.connect(("10.77.0.1", 80))
    print("from", application.accept()[1][0])

agent.close()
squatter = listener(socket.AF_INET, "127.0.0.1", 15101)
for place in (("10.77.0.9", 80), ("127.0.0.1", 15101)):
    try:
        socket.create_connection(place, 5)
    except ConnectionRefusedError:
        print("refused")

# Uid 0 is this user, and no other uid exists. The counters go on: two captured so far, and one direct dial.
kernel.apply(Desired((Capture("shop/web", Recognise(uid=0), 15102),), desired.mesh, agent_uids=(0,)))
try:
    socket.create_connection(("10.77.0.9", 80), 5)
except ConnectionRefusedError:
    print({w: (c.captured, c.bypassed) for w, c in kernel.counters().workloads.items()})

subprocess.run(["nft", "flush", "ruleset"], check=True)
assert "table deleted" in watch.foreign()
kernel.remove()
"""


def test_an_ordinary_user() -> None:
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    if done.stderr.startswith("unshare"):
        pytest.skip(f"{' '.join(command[:4])}: {done.stderr.strip()}")
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "captured",
        "from 10.77.0.1",
        "from 198.51.100.7",
        "refused",
        "refused",
        "{'shop/web': (3, 1)}",
    ]
