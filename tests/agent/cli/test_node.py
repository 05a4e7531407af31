"""The node's commands against an admin socket that answers what the test wants."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import trio
from click.testing import CliRunner, Result

from agent.answers import (
    CaptureAnswer,
    CaptureRow,
    CertificateRow,
    CertificatesAnswer,
    ConnectionsAnswer,
    Done,
    HeldRow,
    PlanAnswer,
    Rules,
    StatusAnswer,
    TrialRequest,
    TunnelsAnswer,
    UnnamedRow,
    WorkloadRow,
    WorkloadsAnswer,
)
from agent.cli import capture, main, node
from agent.connections import Connection, Direction, Party, Security, Tunnel, Verdict
from agent.node.admin import Admin, admin_socket

WEB = "spiffe://shop.example/ns/shop/sa/web"
DB = "spiffe://shop.example/ns/shop/sa/db"
NOW = time.time()


@contextmanager
def answering(path: Path, **topics: msgspec.Struct) -> Iterator[None]:
    """An agent's admin socket in a thread of its own."""

    def topic(answer: msgspec.Struct):
        async def give() -> msgspec.Struct:
            return answer

        return give

    started, stop = threading.Event(), []

    async def serve() -> None:
        with admin_socket(path) as sock, trio.CancelScope() as scope:
            stop.append((trio.lowlevel.current_trio_token(), scope))
            started.set()
            names = {name: topic(answer) for name, answer in topics.items()}
            await Admin(names, {"capture/off": topic(Done("capture is off"))}).serve(sock)

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    assert started.wait(10)
    try:
        yield
    finally:
        token, scope = stop[0]
        token.run_sync_soon(scope.cancel)
        thread.join()


@pytest.fixture
def culvert(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(node, "time", SimpleNamespace(time=lambda: NOW))
    path = tmp_path / "agent.sock"

    def run(command: str, **topics: msgspec.Struct) -> Result:
        argv = [*command.split(), "--socket", str(path)]
        if not topics:
            return CliRunner().invoke(main, argv)
        with answering(path, **topics):
            return CliRunner().invoke(main, argv)

    return run


def connection(**facts) -> Connection:
    given = {
        "id": "1.1",
        "direction": Direction.OUTBOUND,
        "source": Party("shop/web", WEB, "10.0.0.1:40000"),
        "destination": Party("shop/db", DB, "10.0.0.2:5432"),
        "security": Security.MTLS,
        "opened": NOW - 200,
        "verdict": Verdict.ALLOWED,
        "sent": 1500,
        "received": 3_000_000,
    }
    return Connection(**(given | facts))


STATUS = StatusAnswer(
    "web-1",
    "shop.example",
    "1.0",
    "10.0.0.9:15012",
    True,
    "",
    9,
    9,
    True,
    "",
    True,
    2,
    1,
    0,
    3,
    1,
    NOW - 60,
    NOW,
    65 << 20,
    -0.0012,
    0.0003,
)


def test_status(culvert):
    done = culvert("status", status=STATUS)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert lines[0] == "node       web-1 of shop.example"
    assert lines[2] == "centre     connected to 10.0.0.9:15012"
    assert lines[3] == "clock      1.2 ms behind the centre's, give or take 0.3 ms"
    assert lines[4] == "acts on    revision 9"
    assert max(map(len, lines)) <= 80


def test_status_of_a_node_in_trouble(culvert):
    answer = msgspec.structs.replace(
        STATUS,
        connected=False,
        centre_problem="no route",
        revision=12,
        ready=False,
        not_ready="no worker is ready",
        capture=False,
        problems=["workload shop/x: nothing says how to recognise it"],
    )
    done = culvert("status", status=answer)
    assert "no session with 10.0.0.9:15012: no route" in done.stdout
    assert "revision 9 (revision 12 is known)" in done.stdout
    assert "no: no worker is ready" in done.stdout
    assert "off (`culvert capture on`)" in done.stdout
    assert done.stderr == "problem: workload shop/x: nothing says how to recognise it\n"


def test_workloads(culvert, monkeypatch):
    rows = [
        WorkloadRow("shop/web", WEB, "uid 1000", ["10.0.0.1:80", "10.0.0.1:443"], True, True, "valid"),
        WorkloadRow("shop/db", DB, "netns db", ["[fd00::2]:5432"], True, False, "failing"),
        WorkloadRow("shop/old", DB, "", [], False),
    ]
    done = culvert("workloads", workloads=WorkloadsAnswer(rows))
    assert done.stdout.splitlines() == [
        "WORKLOAD  SERVES           RECOGNISED BY  STATE                   CERTIFICATE",
        "shop/web  10.0.0.1:80,443  uid 1000       captured                valid",
        "shop/db   [fd00::2]:5432   netns db       enrolled, not captured  failing",
        "shop/old  -                -              not enrolled            -",
    ]
    monkeypatch.setenv("COLUMNS", "160")
    assert WEB in culvert("workloads -o wide", workloads=WorkloadsAnswer(rows)).stdout


def test_certificates(culvert):
    rows = [
        CertificateRow("spiffe://shop.example/node/web-1", "valid", "0A" * 20, 1_800_000_000, 1_799_900_000),
        CertificateRow(WEB, "failing", reason="the centre cannot be called"),
    ]
    done = culvert("certificates", certificates=CertificatesAnswer(rows, NOW))
    assert done.stdout.splitlines() == [
        "identities of spiffe://shop.example/",
        "IDENTITY        STATUS   SERIAL    NOT AFTER         NOT BEFORE",
        "node/web-1      valid    0A0A0A0A  2027-01-15 08:00  2027-01-14 04:13",
        "ns/shop/sa/web  failing            -                 -",
    ]
    assert done.stderr == f"problem: {WEB}: the centre cannot be called\n"


def test_connections(culvert):
    answer = ConnectionsAnswer(
        [connection()],
        [
            connection(
                direction=Direction.INBOUND,
                source=Party(address="192.0.2.7:1234"),
                security=Security.PLAINTEXT,
                verdict=Verdict.REFUSED,
                reason="mode STRICT",
                state="closed",
                sent=0,
                received=0,
            ),
            connection(state="closed", destination=Party(address="192.0.2.8:443"), security=Security.PLAINTEXT),
        ],
        dropped=4,
    )
    done = culvert("connections", connections=answer)
    assert done.stdout.splitlines() == [
        "SOURCE     DESTINATION    WAY  SECURITY   SENT  RECV  AGE  VERDICT",
        "shop/web   shop/db:5432   out  mtls       1.5K  2.9M  3m   open",
        "192.0.2.7  shop/db:5432   in   plaintext  0     0     3m   refused: mode STRICT",
        "shop/web   192.0.2.8:443  out  plaintext  1.5K  2.9M  3m   allowed",
    ]
    assert "4 records" in done.stderr
    assert len(culvert("connections --live", connections=answer).stdout.splitlines()) == 2
    assert "192.0.2.7" not in culvert("connections --last 1", connections=answer).stdout
    assert json.loads(culvert("connections -o json --last 0", connections=answer).stdout)["closed"] == []
    empty = culvert("connections", connections=ConnectionsAnswer([], []))
    assert (empty.stdout, empty.stderr) == ("", "no connections yet\n")


def test_tunnels(culvert):
    tunnel = Tunnel("t1", Direction.OUTBOUND, WEB, DB, "10.0.0.2", NOW - 10, 2, 7, 100, 2000, "draining")
    done = culvert("tunnels", tunnels=TunnelsAnswer([tunnel]))
    assert done.stdout.splitlines() == [
        "LOCAL     PEER     ADDRESS   WAY  OPEN  ALL  SENT  RECV  AGE  STATE",
        "shop/web  shop/db  10.0.0.2  out  2     7    100   2.0K  10s  draining",
    ]


def test_capture(culvert):
    rows = [
        CaptureRow("shop/web", "uid 1000", "", 15100, 4, 2, 1),
        CaptureRow("shop/db", "netns db", "/run/netns/db", 15001, unmeshed=3, blocked=2),
    ]
    done = culvert("capture status", capture=CaptureAnswer(True, rows))
    assert done.stdout.splitlines() == [
        "WORKLOAD  RECOGNISED BY  PORT   CAPTURED  BYPASSED  SKIPPED  UNMESHED",
        "shop/web  uid 1000       15100  4         2         1        0",
        "shop/db   netns db       15001  0         0         0        3, 2 blocked",
    ]
    off = culvert("capture status", capture=CaptureAnswer(False))
    assert "capture is switched off" in off.stderr
    tried = culvert("capture status", capture=CaptureAnswer(True, rows, trial=41.7))
    assert tried.stderr == "tried for 42 s more; keep it with `culvert capture confirm`\n"
    assert culvert("capture off", capture=CaptureAnswer(True)).stdout == "capture is off\n"


def test_what_passed_while_the_agent_was_away(culvert):
    rows = [CaptureRow("shop/web", "uid 1000", fail_mode="open", passed=3)]
    answer = CaptureAnswer(True, rows, held=HeldRow(asked=1), unnamed=UnnamedRow(10**9, 10**9))
    done = culvert("capture status", capture=answer)
    assert done.stderr.splitlines() == [
        "shop/web fails open: 3 connections passed while the agent was away",
        "passed while the agent was away: 1000000000 connections of new units",
        "passed while the agent was away: 1000000000 connections of new containers",
        "held until known: 1 connections of new cgroups",
    ]
    assert max(map(len, done.stderr.splitlines())) <= 80
    machine = json.loads(culvert("capture status -o json", capture=answer).stdout)
    assert machine["unnamed"] == {"units": 10**9, "containers": 10**9}


def test_capture_plan(culvert):
    here = Rules("", "table inet culvert {\n}", "+table inet culvert", ["shop/web: what uid 1000 sends goes"])
    answer = PlanAnswer([here, Rules("/run/netns/db", "x")], False, ["ports 22: SSH", "port 2222 " + "of this " * 12])
    done = culvert("capture plan", plan=answer)
    assert done.stdout.splitlines()[:5] == [
        "# this machine",
        "#   shop/web: what uid 1000 sends goes",
        "+table inet culvert",
        "# never captured, whatever the mesh says:",
        "#   ports 22: SSH",
    ]
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stderr == "capture is off; `culvert capture apply --confirm 60s` tries this\n"
    full = culvert("capture plan --full", plan=answer)
    assert full.stdout == "# this machine\ntable inet culvert {\n}\n# /run/netns/db\nx\n"
    same = culvert("capture plan", plan=PlanAnswer([Rules("", "x")]))
    assert same.stderr == "nothing to change: the kernel holds what the mesh asks for\n"
    assert culvert("capture plan", plan=PlanAnswer([])).stderr == "no rules: nobody is captured\n"


@pytest.mark.parametrize(
    ("arguments", "environ", "sent"),
    [
        ("", {}, TrialRequest(0.0)),
        ("", {"SSH_TTY": "/dev/pts/0"}, TrialRequest(60.0)),
        ("", {"SSH_CONNECTION": "192.0.2.7 4711 ::ffff:10.0.0.1 2222"}, TrialRequest(60.0, ("10.0.0.1", 2222))),
        ("--confirm 0", {"SSH_TTY": "/dev/pts/0"}, TrialRequest(0.0)),
        ("--confirm 5m", {}, TrialRequest(300.0)),
    ],
)
def test_capture_apply_is_a_trial_in_remote_logins(culvert, monkeypatch, arguments, environ, sent):
    for name in ("SSH_TTY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    asked = []
    monkeypatch.setattr(capture, "tell", lambda path, command, order: asked.append((command, order)) or "done")
    assert culvert(f"capture apply {arguments}".strip()).stdout == "done\n"
    assert asked == [("capture/apply", sent)]


@pytest.mark.parametrize("time", ["soon", "1s", "2d"])
def test_capture_apply_for_no_time(culvert, time):
    done = culvert(f"capture apply --confirm {time}")
    assert done.exit_code == 2
    assert "--confirm" in done.stderr
    assert time in done.stderr or "5s to 24h" in done.stderr


def test_a_file_that_is_no_socket(culvert, tmp_path):
    (tmp_path / "agent.sock").touch()
    done = culvert("status")
    assert done.exit_code == 1
    assert "agent.sock is no socket; name that of the agent with --socket" in done.stderr


@pytest.mark.parametrize("command", ["status", "workloads", "certificates", "connections", "tunnels", "capture status"])
def test_without_an_agent(culvert, command):
    done = culvert(command)
    assert done.exit_code == 1
    assert "no agent answers at" in done.stderr
    assert "culvert agent run" in done.stderr


def test_an_agent_of_another_version(culvert):
    done = culvert("tunnels", status=STATUS)
    assert done.exit_code == 1
    assert "there is no /v1/tunnels" in done.stderr
    done = culvert("tunnels", tunnels=Done("what?"))
    assert "is it of another version?" in done.stderr
