"""Units that say who they are, found through a real systemd: booted in a container, with the agent as its service."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.netns.container import Container, why_not

WEB = """
[Service]
ExecStart=/usr/bin/python3 -m http.server 8080 --bind 10.77.0.1 --directory /usr/share/doc
[X-Culvert]
Labels=app=web mesh=on
ServiceAccount=site
Ports=8080
Namespace=shop
"""

PLAIN = "[Service]\nExecStart=/usr/bin/python3 -m http.server 8081 --bind 10.77.0.1 --directory /usr/share/doc\n"
DROP_IN = "[X-Culvert]\nNamespace=shop\nLabels=app=plain\nLabels=mesh=on\n"
TEMPLATE = "[Service]\nExecStart=/bin/sleep infinity\n[X-Culvert]\nNamespace=shop\nPorts=9000\n"

CALLER = """
kind: Workload
metadata: {namespace: shop, name: caller, labels: {mesh: on}}
spec: {serviceAccount: caller, ports: [], match: {uid: 64101}}
"""

SCRIPT = r"""#!/bin/sh
# Each step writes its facts to /out; the test judges them.
set -x
export PATH=/opt/culvert/bin:$PATH
say() { name=$1; shift; "$@" >"/out/$name" 2>&1; echo "$?" >"/out/$name.status"; }
until_says() {  # NAME PYTHON-EXPRESSION over the rows by workload: waits until it is true, and keeps the answer
    cat >/run/judge.py <<JUDGE
import json, sys
answer = json.load(sys.stdin)
rows = {r["workload"]: r for r in answer["rows"]}
state = lambda name: rows.get(name, {}).get("state")
sys.exit(not ($2))
JUDGE
    for _ in $(seq 20); do
        culvert discovered -o json >"/out/$1" 2>/run/errors && python3 /run/judge.py <"/out/$1" && break
        sleep 0.1
    done
}
ip link add box type bridge; ip addr add 10.77.0.1/24 dev box; ip link set box up
systemd-sysusers
install -d /etc/culvert /etc/culvert/workloads.d && echo 'dir = "/var/lib/culvert/central"' >/etc/culvert/central.toml
echo '[discovery]
linger = "1s"' >/etc/culvert/agent.toml
culvert central init --trust-domain boot.example --listen 10.77.0.1:15012
chown -R culvert-central:culvert-central /var/lib/culvert/central
systemctl start culvert-central
culvert agent join "$(culvert central token create --node box --allow-namespace shop)" --address 10.77.0.1
cp /caller.yaml /etc/culvert/workloads.d/
systemctl start culvert-agent
until_says first 'state("shop/web-box") == "registered" and state("shop/caller") == "registered"'
systemctl start web plain
for _ in $(seq 20); do
    culvert workloads -o json >/out/captured; [ "$(grep -c '"captured": true' /out/captured)" = 2 ] && break; sleep 0.1
done
say fetch setpriv --reuid 64101 --regid 64101 --clear-groups \
    curl -sS --fail --max-time 5 --retry 5 http://10.77.0.1:8080/
for _ in $(seq 20); do
    culvert connections -o json >/out/connections; grep -q caller /out/connections && break; sleep 0.1
done
mkdir -p /etc/systemd/system/plain.service.d
cp /drop-in /etc/systemd/system/plain.service.d/mesh.conf; systemctl daemon-reload
until_says drop-in 'rows.get("shop/plain-box", {}).get("ports") == [8081] and state("shop/plain-box") == "registered"'
sed -i 's/mesh=on/mesh=on tier=x/' /etc/systemd/system/plain.service.d/mesh.conf
for _ in $(seq 20); do
    culvert get workload shop/plain-box -o json >/out/edited; grep -q tier /out/edited && break; sleep 0.1
done
say restart systemctl restart plain
until_says restarted 'state("shop/plain-box") == "registered"'
systemctl start app@one
until_says instance 'state("shop/app-one-box") == "registered"'
systemctl stop app@one
until_says instance-gone 'state("shop/app-one-box") is None'
systemctl daemon-reexec
sleep 1.5
rm /etc/systemd/system/plain.service.d/mesh.conf; systemctl daemon-reload
until_says removed 'state("shop/plain-box") is None'
mkdir -p /etc/systemd/system/bad.service.d
printf '[X-Culvert]\nPort=1\n' >/etc/systemd/system/bad.service.d/x.conf
printf '[Service]\nExecStart=/bin/true\n' >/etc/systemd/system/bad.service; systemctl daemon-reload
until_says bad 'any("bad.service" in p for p in answer["problems"])'
culvert status >/out/node 2>&1
culvert discovered -o wide >/out/table 2>&1
journalctl --no-pager -u culvert-agent -u culvert-central >/out/journal
"""


class Booted:
    """What the script in the container wrote."""

    def __init__(self, out: Path) -> None:
        self._out = out

    def text(self, name: str) -> str:
        return (self._out / name).read_text()

    def rows(self, name: str) -> dict[str, Any]:
        return {row["workload"]: row for row in json.loads(self.text(name))["rows"]}


@pytest.fixture(scope="module")
def booted(tmp_path_factory: pytest.TempPathFactory) -> Booted:
    if reason := why_not():
        pytest.skip(reason)
    container = Container(tmp_path_factory.mktemp("units"), seconds=110)
    container.install(
        "culvert-agent.service", "culvert-central.service", **{"web": WEB, "plain": PLAIN, "app@": TEMPLATE}
    )
    container.write("/drop-in", DROP_IN)
    container.write("/caller.yaml", CALLER)
    return Booted(container.boot_or_skip(SCRIPT))


def test_a_unit_is_registered_before_it_runs(booted: Booted) -> None:
    web = booted.rows("first")["shop/web-box"]
    assert (web["source"], web["place"], web["account"]) == ("systemd", "web.service", "site")
    assert (web["recognised"], web["ports"], web["state"]) == ("cgroup system.slice/web.service", [8080], "registered")


def test_it_is_captured_as_itself(booted: Booted) -> None:
    assert booted.text("fetch.status").strip() == "0", booted.text("fetch")
    said = json.loads(booted.text("connections"))
    pairs = {(c["source"].get("identity"), c["destination"].get("identity")) for c in said["closed"]}
    base = "spiffe://boot.example/ns/shop/sa"
    assert (f"{base}/caller", f"{base}/site") in pairs


def test_a_drop_in_makes_a_workload_with_the_ports_of_the_kernel(booted: Booted) -> None:
    plain = booted.rows("drop-in")["shop/plain-box"]
    assert (plain["account"], plain["ports"], plain["state"]) == ("plain", [8081], "registered")
    (workload,) = json.loads(booted.text("edited"))
    assert workload["metadata"]["labels"] == {"app": "plain", "mesh": "on", "tier": "x"}
    assert workload["spec"]["found"]["source"] == "systemd"
    assert booted.rows("restarted")["shop/plain-box"]["state"] == "registered"


def test_instances_of_a_template_come_and_go(booted: Booted) -> None:
    one = booted.rows("instance")["shop/app-one-box"]
    assert one["recognised"] == "cgroup system.slice/system-app.slice/app@one.service"
    assert (one["account"], one["state"]) == ("app", "registered")
    assert "shop/app-one-box" not in booted.rows("instance-gone")


def test_what_loses_its_section_goes_also_after_a_reexec(booted: Booted) -> None:
    assert set(booted.rows("removed")) == {"shop/web-box", "shop/caller"}


def test_a_section_that_makes_no_sense_is_named(booted: Booted) -> None:
    said = "unit bad.service: [X-Culvert] 'Port=1': 'Port' is no setting of it; did you mean Ports"
    assert said in booted.text("node")
    assert said in booted.text("table")
