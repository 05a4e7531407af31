"""The units run for real: systemd boots in a container, and the mesh is driven through `systemctl`."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.netns.container import Container, why_not

WEB = """
[Service]
User=web
ExecStart=/usr/bin/python3 -m http.server 8080 --bind 10.77.0.1 --directory /usr/share/doc
"""

MESH = """
apiVersion: culvert/v1
kind: Workload
metadata: {namespace: shop, name: web, labels: {mesh: "on"}}
spec: {node: box, serviceAccount: web, ports: [8080], match: {cgroup: system.slice/web.service}}
---
apiVersion: culvert/v1
kind: Workload
metadata: {namespace: shop, name: client, labels: {mesh: "on"}}
spec: {node: box, serviceAccount: client, match: {uid: 64101}}
---
apiVersion: culvert/v1
kind: Workload
metadata: {namespace: shop, name: open, labels: {mesh: "on"}}
spec: {node: box, serviceAccount: open, match: {uid: 64102}, failMode: open}
---
apiVersion: culvert/v1
kind: Workload
metadata: {namespace: shop, name: unit, labels: {mesh: "on"}}
spec: {node: box, serviceAccount: unit, match: {cgroup: system.slice/unit.service}}
---
apiVersion: culvert/v1
kind: Workload
metadata: {namespace: shop, name: far, labels: {mesh: "on"}}
spec: {node: elsewhere, serviceAccount: far, address: 10.78.0.9, ports: [80]}
"""

SCRIPT = r"""#!/bin/sh
# Each step writes its facts to /out; the test judges them.
set -x
export PATH=/opt/culvert/bin:$PATH
say() { name=$1; shift; "$@" >"/out/$name" 2>&1; echo "$?" >"/out/$name.status"; }
fetch() { setpriv --reuid 64101 --regid 64101 --clear-groups curl -sS --fail --max-time 5 http://10.77.0.1:8080/; }
settled() {  # until the node acts on the newest revision
    for _ in $(seq 100); do
        culvert central status -o json | python3 -c 'import json,sys; s=json.load(sys.stdin)
sys.exit(not all(n["connected"] and n["active"] == s["revision"] for n in s["nodes"] if n["name"] == "box"))' && return
        sleep 0.1
    done
}
ip link add box type bridge; ip addr add 10.77.0.1/24 dev box; ip link set box up
systemd-sysusers; useradd --system web
# As systemd/README.md says:
say init culvert central init --trust-domain boot.example --listen 10.77.0.1:15012
chown -R culvert-central:culvert-central /var/lib/culvert/central
say too-early systemctl start culvert-agent
say too-early-state systemctl is-active culvert-agent
say central systemctl start culvert-central
token=$(culvert central token create --node box)
culvert central token create --node elsewhere >/dev/null
say join culvert agent join "$token" --address 10.77.0.1
say agent systemctl start culvert-agent
systemctl start web
culvert apply -f /mesh.yaml; settled
say first fetch
say check culvert check -o json
for p in $(cat $(find /sys/fs/cgroup -path '*/culvert-agent.service/cgroup.procs') | sort -u); do
    echo "$p $(awk '/^(Uid|CapEff|NoNewPrivs):/ {printf "%s ", $2}' "/proc/$p/status")"
done >/out/rights
say connections culvert connections -o json
say restart-web systemctl restart web
for _ in $(seq 50); do
    fetch >/dev/null && break; sleep 0.1
done
say after-restart-of-web culvert connections -o json
ip netns add late  # a namespace that appears while the agent runs, and must be seen by it in its own mounts
say sees nsenter -t "$(systemctl show -p MainPID --value culvert-agent)" --mount ls /run/netns
ip -n late link set lo up
culvert apply -f /late.yaml; settled
say late-table ip netns exec late nft list tables
say reload systemctl reload culvert-agent
say reloaded systemctl is-active culvert-agent
before=$(systemctl show -p MainPID --value culvert-agent)
systemctl kill --kill-who=main -s KILL culvert-agent
for _ in $(seq 100); do
    now=$(systemctl show -p MainPID --value culvert-agent)
    [ "$now" != 0 ] && [ "$now" != "$before" ] && systemctl is-active culvert-agent && break; sleep 0.1
done
say killed sh -c "echo $before $now; systemctl is-active culvert-agent"
settled
say third fetch
say stop systemctl stop culvert-agent
say held fetch
say tables nft list tables
say again systemctl start culvert-agent
say fourth fetch
cp -a /var/lib/culvert/agent /out/state
say leave culvert agent leave
say tables-after nft list tables
say security systemd-analyze security --no-pager culvert-agent culvert-central
journalctl --no-pager -u culvert-agent -u culvert-central >/out/journal
"""

LATE = """
apiVersion: culvert/v1
kind: Workload
metadata: {namespace: shop, name: late, labels: {mesh: "on"}}
spec: {node: box, serviceAccount: late, address: 10.77.9.9, ports: [80], match: {netns: late}}
"""


REBOOT = r"""#!/bin/sh
# The next boot, before the agent has started: whoever calls here came as early as basic.target.
set -x
export PATH=/opt/culvert/bin:$PATH
say() { name=$1; shift; "$@" >"/out/$name" 2>&1; echo "$?" >"/out/$name.status"; }
fetch() { setpriv --reuid "$1" --regid "$1" --clear-groups curl -sS --fail --max-time 5 http://10.78.0.9/; }
say guard systemctl show -p Result -p ActiveState -p ConditionResult culvert-guard
say first-words journalctl --no-pager -u culvert-guard
say order systemctl show -p Before culvert-guard
ip netns add far
ip link add box type veth peer name far netns far
ip addr add 10.78.0.1/24 dev box; ip link set box up
ip -n far addr add 10.78.0.9/24 dev far; ip -n far link set far up; ip -n far link set lo up
ip netns exec far python3 -m http.server 80 --bind 10.78.0.9 --directory /usr/share/doc >/dev/null 2>&1 &
server=$!
for _ in $(seq 100); do ip netns exec far curl -s http://10.78.0.9/ >/dev/null && break; sleep 0.1; done
say newcomer fetch 64999
# Our own unit is younger than the rules; init's cgroup is not.
echo 0 >"$(findmnt -n -t cgroup2 -o TARGET | head -1)$(sed -n s/^0:://p /proc/1/cgroup)/cgroup.procs"
say stranger fetch 64999
say closed fetch 64101
say open fetch 64102
say unit systemctl start unit
say tables nft list tables
nft flush ruleset
say unguarded fetch 64101
say unguarded-unit systemctl start unit
say again culvert capture guard
say open-again fetch 64102
say agent systemctl start culvert-agent
say captures culvert capture status -o json
say twice culvert capture guard
say off culvert capture off
systemctl stop culvert-agent
say guard-off culvert capture guard
say tables-off nft list tables
kill $server
journalctl --no-pager -u culvert-agent -u culvert-guard >/out/journal
"""

UNIT = """
[Service]
Type=oneshot
ExecStart=/usr/bin/curl -sS --fail --max-time 5 http://10.78.0.9/
"""


class Booted:
    """What the script in the container wrote."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def text(self, name: str) -> str:
        return (self.out / name).read_text()

    def status(self, name: str) -> int:
        return int(self.text(f"{name}.status"))

    def connections(self, name: str) -> list[dict[str, Any]]:
        said = json.loads(self.text(name))
        return [*said["live"], *said["closed"]]


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Booted:
    if reason := why_not():
        pytest.skip(reason)
    container = Container(tmp_path_factory.mktemp("boot"))
    container.install("culvert-agent.service", "culvert-central.service", web=WEB)
    container.write("/mesh.yaml", MESH)
    container.write("/late.yaml", LATE)
    return Booted(container.boot_or_skip(SCRIPT))


@pytest.fixture(scope="module")
def rebooted(booted: Booted, tmp_path_factory: pytest.TempPathFactory) -> Booted:
    """A second boot, with what the first left on disk while its agent was stopped."""
    container = Container(tmp_path_factory.mktemp("reboot"))
    container.install("culvert-agent.service", "culvert-guard.service", unit=UNIT)
    wants = container.files / "etc/systemd/system/sysinit.target.wants"
    wants.mkdir(parents=True)
    (wants / "culvert-guard.service").symlink_to("/etc/systemd/system/culvert-guard.service")
    shutil.copytree(booted.out / "state", container.files / "var/lib/culvert/agent")
    return Booted(container.boot_or_skip(REBOOT))


def test_a_machine_that_has_not_joined_boots_without_us(booted: Booted) -> None:
    assert booted.status("too-early") == 0
    assert booted.text("too-early-state").strip() == "inactive"


@pytest.mark.parametrize("step", ["init", "central", "join", "agent", "reload", "again", "stop", "leave"])
def test_each_step_of_the_readme_works(booted: Booted, step: str) -> None:
    assert booted.status(step) == 0, booted.text(step)


def test_the_check_works_from_within_the_sandbox(booted: Booted) -> None:
    """The agent itself answers: what its unit forbids it to see would be unknown."""
    text = booted.text("check")
    found = {f["name"]: f for f in json.loads(text[text.index("{") : text.rindex("}") + 1])["findings"]}
    for name in ("rights", "mounts", "cgroups", "nft", "ports to listen", "neighbours", "disk", "centre"):
        assert found[name]["state"] == "ok", found[name]
    assert found["clock"]["state"] != "unknown"


def test_workers_run_as_their_own_user_with_next_to_no_rights(booted: Booted) -> None:
    rows = [line.split() for line in booted.text("rights").splitlines()]
    workers = [row for row in rows if row[1] != "0"]
    assert len(rows) > len(workers) > 0, rows
    for _, _, capabilities, no_new_privileges in workers:
        assert int(capabilities, 16) == 1 << 13  # CAP_NET_RAW
        assert no_new_privileges == "1"


def test_a_unit_is_served_as_itself(booted: Booted) -> None:
    assert booted.status("first") == 0, booted.text("first")
    pairs = {(c["source"].get("workload"), c["destination"].get("workload")) for c in booted.connections("connections")}
    assert ("shop/client", "shop/web") in pairs


def test_a_restarted_unit_is_captured_again(booted: Booted) -> None:
    """Its cgroup is a new one under the old name."""
    assert booted.status("restart-web") == 0
    assert len(booted.connections("after-restart-of-web")) > len(booted.connections("connections"))


def test_a_namespace_made_later_is_seen_and_captured(booted: Booted) -> None:
    assert booted.text("sees").split() == ["late"]
    assert "table inet culvert" in booted.text("late-table")


def test_a_killed_agent_is_started_again(booted: Booted) -> None:
    before, now, state = booted.text("killed").split()
    assert before != now
    assert state == "active"
    assert booted.status("third") == 0, booted.text("third")


def test_a_stopped_agent_holds_what_is_enrolled(booted: Booted) -> None:
    assert booted.status("held") != 0
    assert "table inet culvert" in booted.text("tables")
    assert booted.status("fourth") == 0, booted.text("fourth")


def test_leaving_takes_the_table_away(booted: Booted) -> None:
    assert "culvert" not in booted.text("tables-after")


def test_the_sandboxes_are_tight(booted: Booted) -> None:
    """systemd's own score, from 0 (safe) to 10 (bare)."""
    scores = [
        float(line.split(":")[1].split()[0])
        for line in booted.text("security").splitlines()
        if "exposure level" in line
    ]
    agent, central = scores
    assert agent < 5
    assert central < 2


def test_the_guard_is_there_before_anybody_can_send(rebooted: Booted) -> None:
    assert set(rebooted.text("guard").split()) == {"Result=success", "ActiveState=active", "ConditionResult=yes"}
    assert "held until the agent answers" in rebooted.text("first-words")
    assert {"network-pre.target", "culvert-agent.service"} <= set(rebooted.text("order").partition("=")[2].split())


def test_until_the_agent_comes_who_is_closed_is_refused(rebooted: Booted) -> None:
    assert rebooted.status("stranger") == 0
    not_connected = 7  # in curl's words; 28 would be a timeout
    assert rebooted.status("newcomer") == not_connected  # might be a workload's
    assert rebooted.status("closed") == not_connected
    assert rebooted.status("unit") != 0  # it has a cgroup that no rule can have known
    assert "table inet culvert" in rebooted.text("tables")


def test_without_the_guard_they_would_have_got_through(rebooted: Booted) -> None:
    assert rebooted.status("unguarded") == 0
    assert rebooted.status("unguarded-unit") == 0


def test_who_is_open_passes_and_the_agent_tells(rebooted: Booted) -> None:
    assert rebooted.status("open") == rebooted.status("open-again") == 0
    assert rebooted.status("agent") == 0
    (told,) = [line for line in rebooted.text("journal").splitlines() if "passed-while-away" in line]
    assert '"workload": "shop/open"' in told
    assert '"connections": 1' in told  # the flush in between took the first count away
    rows = {row["workload"]: row for row in json.loads(rebooted.text("captures"))["rows"]}
    assert (rows["shop/open"]["fail_mode"], rows["shop/open"]["passed"]) == ("open", 1)


def test_the_guard_keeps_out_of_the_way(rebooted: Booted) -> None:
    assert "the agent runs" in rebooted.text("twice")
    assert "capture is switched off" in rebooted.text("guard-off")
    assert "culvert" not in rebooted.text("tables-off")
