"""The units run for real: systemd boots in a container, and the mesh is driven through `systemctl`."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.netns.container import SOURCE, Container, Unbootable, why_not

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
sys.exit(not all(n["connected"] and n["active"] == s["revision"] for n in s["nodes"]))' && return
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
say join culvert agent join "$token" --address 10.77.0.1
say agent systemctl start culvert-agent
systemctl start web
culvert apply -f /mesh.yaml; settled
say first fetch
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


class Booted:
    """What the script in the container wrote."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def text(self, name: str) -> str:
        return (self._out / name).read_text()

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
    for name in ("culvert-agent.service", "culvert-central.service"):
        container.write(f"/etc/systemd/system/{name}", (SOURCE / "systemd" / name).read_text())
    container.write("/usr/lib/sysusers.d/culvert.conf", (SOURCE / "systemd" / "culvert.sysusers.conf").read_text())
    container.write("/etc/systemd/system/web.service", WEB)
    container.write("/mesh.yaml", MESH)
    container.write("/late.yaml", LATE)
    try:
        container.boot(SCRIPT)
    except Unbootable as error:
        pytest.skip(str(error))
    print((container.out / "log").read_text(), (container.out / "journal").read_text())
    return Booted(container.out)


def test_a_machine_that_has_not_joined_boots_without_us(booted: Booted) -> None:
    assert booted.status("too-early") == 0
    assert booted.text("too-early-state").strip() == "inactive"


@pytest.mark.parametrize("step", ["init", "central", "join", "agent", "reload", "again", "stop", "leave"])
def test_each_step_of_the_readme_works(booted: Booted, step: str) -> None:
    assert booted.status(step) == 0, booted.text(step)


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
