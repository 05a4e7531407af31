import json
import signal
import socket
import stat
from pathlib import Path

import pytest

from ca import credential
from ca.tokens import JoinToken
from tests.agent.cli.mesh import Commands, end, free_port, mesh

pytestmark = pytest.mark.slow  # a process for each command


def test_a_new_mesh_from_nothing(tmp_path: Path) -> None:
    culvert = Commands(tmp_path / "centre")
    done = culvert("central", "init", "--trust-domain", "shop.example", "--listen", culvert.address)
    assert done.returncode == 0, done.stderr
    assert culvert.address in done.stdout
    operator = culvert.directory / "operator.json"
    assert stat.S_IMODE(operator.stat().st_mode) == 0o600
    assert not [p for p in culvert.directory.rglob("*key*") if p.is_file() and p.stat().st_mode & 0o077]
    before = {p: p.read_bytes() for p in culvert.directory.rglob("*") if p.is_file()}
    assert "exists" in culvert.refused("central", "init", "--trust-domain", "other.example")
    operator.unlink()
    (culvert.directory / "central.toml").unlink()
    assert "holds a mesh already" in culvert.refused("central", "init", "--trust-domain", "other.example")
    assert before[culvert.directory / "culvert.db"] == (culvert.directory / "culvert.db").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--trust-domain", "Shop_Example"], "trust domain 'Shop_Example' is not a name"),
        (["--trust-domain", "shop.example", "--operator", "A b"], "operator 'A b' is not a name"),
        (["--trust-domain", "shop.example", "--listen", "nowhere"], "'nowhere' is no HOST:PORT"),
    ],
)
def test_init_refuses_bad_names_and_leaves_nothing(tmp_path: Path, words: list[str], said: str) -> None:
    culvert = Commands(tmp_path / "centre")
    assert said in culvert.refused("central", "init", *words)
    assert not culvert.directory.exists()


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    culvert = Commands(tmp_path / "centre")
    culvert.ok("central", "init", "--trust-domain", "shop.example", "--listen", culvert.address)
    for name in ("a", "b", "c"):
        process = culvert.start()
        try:
            culvert.ok("apply", "-f", "-", stdin=f"kind: Node\nmetadata: {{name: {name}}}\n")
        finally:
            assert end(process, signal.SIGKILL) == -signal.SIGKILL
    process = culvert.start()
    try:
        listed = json.loads(culvert.ok("get", "nodes", "-o", "json"))
        assert [n["metadata"]["name"] for n in listed] == ["a", "b", "c"]
        assert json.loads(culvert.ok("central", "status", "-o", "json"))["revision"] == 4
    finally:
        assert end(process) == 0


def test_the_centre_tells_systemd(tmp_path: Path) -> None:
    culvert = Commands(tmp_path / "centre")
    culvert.ok("central", "init", "--trust-domain", "shop.example", "--listen", culvert.address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        culvert.environ |= {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
        process = culvert.start()
        try:
            assert [manager.recv(100) for _ in range(3)] == [b"READY=1", b"WATCHDOG=1", b"WATCHDOG=1"]
        finally:
            assert end(process) == 0
        manager.setblocking(False)
        assert b"STOPPING=1" in list(iter(lambda: _next(manager), b""))


def _next(manager: socket.socket) -> bytes:
    try:
        return manager.recv(100)
    except BlockingIOError:
        return b""


def test_run_says_why_it_cannot(tmp_path: Path) -> None:
    culvert = Commands(tmp_path / "centre")
    assert "culvert central init" in culvert.refused("central", "run")
    culvert.ok("central", "init", "--trust-domain", "shop.example", "--listen", culvert.address)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert f"{where}: cannot listen there: Address already in use" in culvert.refused(
            "central", "run", "--listen", where
        )
    process = culvert.start()
    try:
        assert "is in use by process" in culvert.refused("central", "run", "--listen", f"127.0.0.1:{free_port()}")
    finally:
        end(process)
    assert "does it run" in culvert.refused("central", "status")


def test_tokens_status_and_operators(tmp_path: Path) -> None:
    with mesh(tmp_path / "centre") as culvert:
        done = culvert("central", "token", "create", "--node", "web-1", "--ttl", "90s")
        (line,) = done.stdout.splitlines()
        token = JoinToken.parse(line)
        assert (token.node, token.address) == ("web-1", culvert.address)
        assert "good for 90s" in done.stderr
        assert "is no length of time" in culvert.refused(
            "central", "token", "create", "--node", "x", "--ttl", "x", code=2
        )
        assert "cannot live for" in culvert.refused("central", "token", "create", "--node", "x", "--ttl", "30d")
        status = culvert.ok("central", "status", COLUMNS="80")
        assert "mesh shop.example, revision 2, 0 workloads, 0 of 1 nodes connected" in status
        assert status.splitlines()[2].split() == ["web-1", "-", "invited", "-", "-", "-", "has", "not", "joined", "yet"]

        alice = tmp_path / "alice.json"
        culvert.ok("central", "operator", "create", "alice", "-o", str(alice))
        assert "exists" in culvert.refused("central", "operator", "create", "alice", "-o", str(alice))
        assert "is the credential of operator alice" in culvert.refused(
            "central", "operator", "renew", "admin", "-o", str(alice)
        )
        assert "web-1" in culvert.ok("get", "nodes", CULVERT_CREDENTIAL=str(alice))
        alice.chmod(0o644)
        assert "others can read it" in culvert.refused("get", "nodes", "--credential", str(alice))
        assert "there is no credential" in culvert.refused("get", "nodes", CULVERT_CENTRAL_DIR=str(tmp_path / "none"))

    before = (culvert.directory / "operator.json").read_bytes()
    culvert.ok("central", "operator", "renew")
    assert (culvert.directory / "operator.json").read_bytes() != before


def test_a_credential_near_its_end_says_so(tmp_path: Path) -> None:
    with mesh(tmp_path / "centre") as culvert:
        short = tmp_path / "short.json"
        own = culvert.directory / "central.toml"
        own.write_text(own.read_text() + '[lives]\noperator = "3d"\n')
        culvert.ok("central", "operator", "create", "bob", "-o", str(tmp_path / "served.json"))
        assert "warning" not in culvert("get", "nodes", "--credential", str(tmp_path / "served.json")).stderr
    made = culvert.ok("central", "operator", "create", "bob", "-o", str(short))
    ends = credential.load(short).ends
    assert f"until {ends:%Y-%m-%d}" in made
    process = culvert.start()
    try:
        done = culvert("get", "nodes", "--credential", str(short))
        assert done.returncode == 0
        assert f"warning: the credential of operator bob ends on {ends:%Y-%m-%d}" in done.stderr
    finally:
        end(process)


def test_settings_and_where_they_come_from(tmp_path: Path) -> None:
    culvert = Commands(tmp_path / "centre")
    culvert.ok("central", "init", "--trust-domain", "shop.example", "--listen", culvert.address)
    rows = json.loads(culvert.ok("config", "show", "central", "-o", "json", CULVERT_CENTRAL_TICK="1s"))
    origins = {r["key"]: (r["value"], r["from"]) for r in rows}
    assert origins["tick"] == ('"1s"', "environment CULVERT_CENTRAL_TICK")
    assert origins["listen"] == (f'"{culvert.address}"', f"{culvert.directory}/central.toml:2")
    assert origins["lives.operator"] == ('"30d"', "default")
    own = tmp_path / "own.toml"
    own.write_text('listn = "x"\n')
    said = culvert.refused("config", "show", "central", "--config", str(own))
    assert f"{own}:1: listn is no setting; did you mean listen?" in said
    explained = culvert.ok("config", "show", "central", "--explain", COLUMNS="80")
    assert max(map(len, explained.splitlines())) <= 80
    assert "How long changes are gathered" in culvert.ok("config", "show", "central", "--explain")
