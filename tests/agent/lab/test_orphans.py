"""What a killed lab left behind."""

import subprocess
from pathlib import Path

import pytest

from agent.lab.orphans import name, remove_orphans
from agent.lab.place import create_cgroup
from redirect.cgroup import mount_point


@pytest.mark.skipif(mount_point() is None, reason="no cgroup v2 is mounted here")
def test_what_cannot_be_removed_keeps_nobody_from_a_lab_of_his_own() -> None:
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    create_cgroup(path := f"{name(gone.pid, 1)}/servers")
    left = Path(mount_point() or "", path)
    with subprocess.Popen(["sleep", "20"]) as stray:
        (left / "cgroup.procs").write_text(str(stray.pid))
        remove_orphans(gone.pid)
        stray_left = left.exists()
        stray.kill()
    assert stray_left
    remove_orphans(gone.pid)
    assert not left.parent.exists()
