"""A real systemd restarts an enrolled unit a hundred times, which dials the mesh without a pause: nothing slips out."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.netns.container import Container, why_not

RESTARTS, RATE = 100, 200
"""A restart counts when its first round had so many attempts a second; those that a busy machine made slower come on
top."""
EARLY, ATTEMPTS = 20, 40
"""A shell makes the early ones, within milliseconds of its cgroup's birth; each round after that is made by the program
that the shell becomes. A start is not over before the first round is."""
PORT = 9191
MARKER = "units-of-systemd-say-this-in-confidence"
HERE = "/opt/culvert/source/tests/netns"

STORM = {
    "address": "10.78.0.9",
    "port": PORT,
    "marker": MARKER,
    "rounds": 100_000,
    "attempts": ATTEMPTS,
    "restarts": 0,
    "pause": 0.0005,
    "early": EARLY,
}

DIAL = f"""#!/bin/bash
since=$EPOCHREALTIME fds=
for _ in {{1..{EARLY}}}; do
    exec {{fd}}<>/dev/tcp/10.78.0.9/{PORT} && printf %s {MARKER} >&"$fd" && fds+=" $fd"
done
exec /usr/bin/python3 -IS {HERE}/storm.py '{json.dumps(STORM)}' "$since" $fds
"""

UNIT = """
[Unit]
StartLimitIntervalSec=0
[Service]
Type=notify
TimeoutStartSec=30
# It is not to be what is slow where others keep the machine busy.
Nice=-15
ExecStart=/dial
StandardOutput=append:/out/rounds
"""

ECHO = """
import socketserver
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(4096):
            self.request.sendall(data)
class Server(socketserver.ThreadingTCPServer):
    request_queue_size, daemon_threads = 1024, True
Server(("10.78.0.9", 9191), Echo).serve_forever()
"""

MESH = """
apiVersion: culvert/v1
kind: Workload
metadata: {namespace: shop, name: storm, labels: {mesh: "on"}}
spec: {node: box, serviceAccount: storm, match: {cgroup: system.slice/storm.service}}
---
apiVersion: culvert/v1
kind: Workload
metadata: {namespace: shop, name: api, labels: {mesh: "on"}}
spec: {node: far, serviceAccount: api, ports: [9191], match: {uid: 64102}}
"""

SETTINGS = f"""#!/bin/sh
here={HERE} marker={MARKER} port={PORT} restarts={RESTARTS} enough={RATE}
"""

SCRIPT = r"""
# Each step writes its facts to /out; the test judges them.
set -x
export PATH=/opt/culvert/bin:$PATH
settled() {  # until both nodes act on the newest revision
    for _ in $(seq 200); do
        culvert central status -o json | python3 -c 'import json,sys; s=json.load(sys.stdin)
sys.exit(not (len(s["nodes"]) == 2 and all(n["connected"] and n["active"] == s["revision"] for n in s["nodes"])))' &&
            return
        sleep 0.1
    done
}
far() { nsenter --net=/run/netns/far env CULVERT_AGENT_STATE_DIR=/var/lib/culvert/far CULVERT_AGENT_DRAIN=1s \
    CULVERT_AGENT_RUN_DIR=/run/culvert-far CULVERT_AGENT_DISCOVERY_SYSTEMD=false "$@"; }
fast() {
    python3 - <<COUNT
import json
first = {}
for line in open("/out/rounds"):
    first.setdefault(json.loads(line)["pid"], json.loads(line)["slowest"])
print(sum(rate >= $rate for rate in first.values()))
COUNT
}
restart() {  # NAME COUNT RATE: what the wire shows of so many restarts is in /out/NAME
    rate=$3
    /opt/culvert/bin/python $here/ear.py box $marker $port >"/out/$1" 2>/run/ear &
    ear=$!
    for _ in $(seq 100); do grep -q listening /run/ear && break; sleep 0.1; done
    systemctl start storm
    before=$(date +%s)
    for n in $(seq $(($2 + 50))); do
        systemctl restart storm || break
        [ "$n" -ge "$2" ] && [ "$(fast)" -gt "$2" ] && break
    done
    echo "$(($(date +%s) - before)) seconds for $n restarts"
    systemctl stop storm
    kill $ear; wait $ear
    mv /out/rounds "/out/$1-rounds"
}
ip netns add far
ip link add box type veth peer name far netns far
ip addr add 10.78.0.1/24 dev box; ip link set box up
ip -n far addr add 10.78.0.9/24 dev far; ip -n far link set far up; ip -n far link set lo up
systemd-sysusers
install -d /etc/culvert && echo 'dir = "/var/lib/culvert/central"' >/etc/culvert/central.toml
culvert central init --trust-domain boot.example --listen 10.78.0.1:15012
chown -R culvert-central:culvert-central /var/lib/culvert/central
systemctl start culvert-central
culvert agent join "$(culvert central token create --node box)" --address 10.78.0.1
systemctl start culvert-agent
far culvert agent join "$(culvert central token create --node far)" --address 10.78.0.9
far culvert agent run >/out/far.log 2>&1 &
agent=$!
nsenter --net=/run/netns/far setpriv --reuid 64102 --regid 64102 --clear-groups python3 -I /echo.py &
server=$!
culvert apply -f /mesh.yaml; settled
culvert capture off
restart control 2 0  # first, while no port is on its way out that the mesh has used
culvert capture on; settled
restart captured $restarts $enough
nft list chain inet culvert unknown >/out/unknown
culvert connections --last 1000 -o json >/out/connections
kill $server $agent; wait $agent
journalctl --no-pager -n 300 -u culvert-agent -u storm >/out/journal
"""


pytestmark = pytest.mark.timeout(200)


class Booted:
    """What the script in the container wrote."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def text(self, name: str) -> str:
        return (self._out / name).read_text()

    def heard(self, name: str) -> dict[str, int]:
        """What was on the wire meanwhile."""
        return dict(json.loads(self.text(name)))

    def lives(self, name: str) -> list[list[dict[str, Any]]]:
        """The words of each process that the unit had meanwhile, one for each round."""
        lives: dict[int, list[dict[str, Any]]] = {}
        for line in self.text(f"{name}-rounds").splitlines():
            said = json.loads(line)
            lives.setdefault(said["pid"], []).append(said)
        return list(lives.values())

    def total(self, name: str, what: str) -> int:
        """Attempts of all lives together."""
        return sum(rounds[-1][what] for rounds in self.lives(name))


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Booted:
    if reason := why_not():
        pytest.skip(reason)
    container = Container(tmp_path_factory.mktemp("unit-restarts"), seconds=170)
    container.install("culvert-agent.service", "culvert-central.service", storm=UNIT)
    container.write("/mesh.yaml", MESH)
    container.write("/echo.py", ECHO)
    container.write("/dial", DIAL, 0o755)
    return Booted(container.boot_or_skip(SETTINGS + SCRIPT))


@pytest.mark.alone
def test_a_hundred_restarts_by_systemd_leave_no_gap(booted: Booted) -> None:
    lives = booted.lives("captured")
    rates = [rounds[0]["slowest"] for rounds in lives[1:]]
    attempted, carried, refused = (booted.total("captured", what) for what in ("attempted", "carried", "refused"))
    heard = booted.heard("captured")
    print(f"{len(rates)} restarts, {sum(rate < RATE for rate in rates)} of them too slow to count; wire: {heard}")
    print(f"attempted {attempted}, carried {carried}, refused {refused}; slowest round {min(rates):.0f}/s")
    assert len({rounds[0]["cgroup"] for rounds in lives}) == len(lives)
    assert sum(rate >= RATE for rate in rates) >= RESTARTS
    assert attempted == carried + refused, [rounds[-1]["strange"] for rounds in lives if rounds[-1]["strange"]]
    assert attempted >= (EARLY + ATTEMPTS) * len(lives)
    assert carried >= 0.97 * attempted
    assert (heard["clear"], heard["opened"], heard["lost"]) == (0, 0, 0)
    assert heard["tunnelled"] >= 2 * carried * len(MARKER)


def test_the_first_attempts_of_each_life_were_held_until_their_cgroup_had_a_name(booted: Booted) -> None:
    asked = [line for line in booted.text("unknown").splitlines() if "packets" in line]
    assert sum(int(line.split("packets ")[1].split()[0]) for line in asked) > RESTARTS
    closed = json.loads(booted.text("connections"))["closed"]
    assert {c["source"]["workload"] for c in closed} == {"shop/storm"}


def test_without_capture_the_ear_hears_it_all(booted: Booted) -> None:
    attempted = booted.total("control", "attempted")
    heard = booted.heard("control")
    assert heard["lost"] == 0
    # Rounds that were too slow to count are heard as well.
    assert heard["opened"] >= attempted > 0
    assert heard["clear"] >= 2 * attempted * len(MARKER)
