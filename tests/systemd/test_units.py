"""The units as systemd reads them."""

import itertools
import shutil
import subprocess
from pathlib import Path

import pytest

UNITS = Path(__file__).parents[2] / "systemd"
PROGRAM = "/opt/culvert/bin/culvert"


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units with a program that exists here."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed: apt-get install systemd")
    copies = []
    for unit in sorted(UNITS.glob("*.service")):
        text = unit.read_text()
        assert f"ExecStart={PROGRAM} " in text
        copy = tmp_path / unit.name
        copy.write_text(text.replace(PROGRAM, shutil.which("true") or "/bin/true"))
        copies.append(copy)
    return copies


def verify(*units: Path) -> tuple[int, str]:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout + done.stderr


def test_systemd_has_nothing_to_say(units: list[Path]) -> None:
    assert [u.name for u in units] == [f"culvert-{name}.service" for name in ("agent", "central", "guard")]
    assert verify(*units) == (0, "")


def test_systemd_would_say_so(units: list[Path]) -> None:
    units[0].write_text(units[0].read_text().replace("KillMode=", "KilMode="))
    _, said = verify(*units)
    assert "KilMode" in said


@pytest.mark.parametrize("name", ["culvert-agent.service", "culvert-central.service", "culvert-guard.service"])
def test_each_line_of_a_sandbox_has_its_reason(name: str) -> None:
    """A comment stands right above each setting, or above the first of several lines of the same one."""
    _, _, sandbox = (UNITS / name).read_text().partition("# --- Sandbox")
    lines = [line for line in sandbox.partition("[Install]")[0].splitlines()[1:] if line]
    assert len(lines) > 20
    for before, line in itertools.pairwise(lines):
        key = line.partition("=")[0]
        assert line.startswith("#") or before.startswith(("#", key)), line
