import json
import urllib.request
from pathlib import Path

import pytest

from tests.agent.cli.mesh import Commands, end, free_port, mesh

pytestmark = pytest.mark.slow  # a process for each command


def test_status_says_what_ends_when_and_fails_when_something_is_overdue(tmp_path: Path) -> None:
    culvert = Commands(tmp_path / "centre")
    culvert.environ["CULVERT_CENTRAL_LIVES_ROOT"] = "400d"
    culvert.ok("central", "init", "--trust-domain", "shop.example", "--listen", culvert.address)
    process = culvert.start()
    try:
        lines = culvert.ok("ca", "status", COLUMNS="80").splitlines()
        assert lines[:3] == [
            "certificates of 1 root, 1 issuer",
            "0 overdue, 0 ended; 0 revocations",
            "workloads' certificates live 1d",
        ]
        assert [line.split()[1] for line in lines[3:]] == ["WHAT", "issuing", "root"]
        assert all(len(line) <= 80 and line.endswith("good") for line in lines[4:])
        assert len(culvert.ok("ca", "status", "--limit", "0").splitlines()) == len(
            lines
        )  # what signs always stands there
    finally:
        end(process)
    # A root is late from the start if less than all of its life is thought to be little.
    culvert.environ["CULVERT_CENTRAL_ALARMS_ROOT"] = "1"
    process = culvert.start()
    try:
        said = culvert.refused("ca", "status")
        assert "warning: root " in said
        assert "plan a new root now" in said
        done = culvert("ca", "status", "-o", "json")
        assert done.returncode == 1
        trust = json.loads(done.stdout)
        assert [(c["what"], c["standing"]) for c in trust["certificates"]] == [("issuing", "good"), ("root", "late")]
        assert trust["counts"][0] == {"what": "root", "good": 0, "late": 1, "ended": 0}
        assert "plan a new root now" in culvert("central", "status").stderr
    finally:
        end(process)


def test_metrics_of_the_centre(tmp_path: Path) -> None:
    culvert = Commands(tmp_path / "centre")
    culvert.environ["CULVERT_CENTRAL_METRICS"] = where = f"127.0.0.1:{free_port()}"
    culvert.ok("central", "init", "--trust-domain", "shop.example", "--listen", culvert.address)
    process = culvert.start()
    try:
        with urllib.request.urlopen(f"http://{where}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        assert 'culvert_ca_certificates{state="good",what="issuing"} 1.0' in text
        # Taken already: the centre does without.
        other = Commands(tmp_path / "other")
        other.environ["CULVERT_CENTRAL_METRICS"] = where
        other.ok("central", "init", "--trust-domain", "other.example", "--listen", other.address)
        end(other.start())
    finally:
        end(process)


def test_a_revocation_that_touches_nothing_is_not_taken_for_one_that_does(tmp_path: Path) -> None:
    """A part of a serial, as tables show it, would be acknowledged and stop nobody; so would a name with a slip in
    it."""
    with mesh(tmp_path / "centre") as culvert:
        assert "only a part of one" in culvert.refused("ca", "revoke", "serial", "74E86152")
        assert culvert("get", "revocations").stderr == "there is no revocation\n"
        slip = culvert("ca", "revoke", "node", "wbe-1")
        assert (slip.returncode, slip.stdout) == (0, "node wbe-1 revoked\n")
        assert "no certificate of node wbe-1 on record" in slip.stderr
        himself = culvert("ca", "revoke", "operator", "admin")
        assert (himself.returncode, himself.stdout) == (0, "operator admin revoked\n")
        assert "on record" not in himself.stderr


def test_a_token_s_bounds_are_told_as_they_are_written(tmp_path: Path) -> None:
    with mesh(tmp_path / "centre") as culvert:
        said = culvert.refused("central", "token", "create", "--node", "web-1", "--ttl", "30d")
        assert "a token cannot live for 30d: use more than nothing and at most 7 days" in said


def test_whoever_joins_again_is_told_to_restart_the_agent(tmp_path: Path) -> None:
    """One that runs goes on with the certificate that it has, and that stays revoked."""
    with mesh(tmp_path / "centre") as culvert:

        def join(*more: str) -> str:
            token = culvert.ok("central", "token", "create", "--node", "web-1").strip()
            done = culvert(
                "agent", "join", token, "--state-dir", str(tmp_path / "node"), "--address", "192.0.2.1", *more
            )
            assert done.returncode == 0, done.stderr
            return done.stderr

        assert join() == "next: culvert agent run\n"
        culvert.ok("ca", "revoke", "node", "web-1")
        assert "and restart its agent" in culvert("ca", "unrevoke", "node", "web-1").stderr
        assert "or restart the one that runs" in join("--force")
