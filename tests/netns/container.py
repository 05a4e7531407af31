"""Boots systemd in a container whose root is this machine's own, seen through an overlay that forgets all changes.

Much cheaper than a fresh Debian (nothing is downloaded or unpacked), and it has whatever this machine has. The mounts
live in a mount namespace of their own, so they end with the container.
"""

import contextlib
import os
import shutil
import signal
import site
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2]
_UNITS = "/etc/systemd/system"

_START = r"""
set -e
box=$1; shift
mount -t tmpfs -o mode=755 box "$box/disk"
mkdir "$box/disk/upper" "$box/disk/work" "$box/disk/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$box/disk/upper,workdir=$box/disk/work" "$box/disk/root"
rm -rf "$box/disk/root/etc/culvert" "$box/disk/root/var/lib/culvert"  # what this machine is in a mesh of its own
cp -a "$box/files/." "$box/disk/root/"
for group in "$@"; do
    [ "$group" = -- ] && break
    mkdir -p "$group"; echo 0 > "$group/cgroup.procs"
done
while [ "$1" != -- ]; do shift; done; shift
exec "$@"
"""


_PYTHON = """#!/bin/sh
# The installed command, for a program that is not installed: units call it by this path.
export PYTHONPATH=/opt/culvert/source:/opt/culvert/packages PYTHONDONTWRITEBYTECODE=1
export LD_LIBRARY_PATH=/opt/culvert/python/lib
exec /opt/culvert/python/bin/python{0}.{1} {2} "$@"
"""


class Unbootable(Exception):
    """No container with systemd can be booted here; the message has the command and its error."""


@dataclass(frozen=True, slots=True)
class Container:
    """What to boot: `files` is copied over the root; the script runs as root once the system is up."""

    box: Path
    seconds: float = 100

    @property
    def files(self) -> Path:
        return self.box / "files"

    @property
    def out(self) -> Path:
        """Seen as /out inside."""
        return self.box / "out"

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Put a file into the container's root."""
        target = self.files / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def install(self, *units: str, **texts: str) -> None:
        """Put in these units of the project, its users, and services of the test's own: name=text."""
        for name in units:
            self.write(f"{_UNITS}/{name}", (SOURCE / "systemd" / name).read_text())
        self.write("/usr/lib/sysusers.d/culvert.conf", (SOURCE / "systemd" / "culvert.sysusers.conf").read_text())
        for name, text in texts.items():
            self.write(f"{_UNITS}/{name}.service", text)

    def boot_or_skip(self, script: str) -> Path:
        """`boot`, and show what was said; -> `out`. The test is skipped where nothing can be booted."""
        try:
            self.boot(script)
        except Unbootable as error:
            pytest.skip(str(error))
        print((self.out / "log").read_text(), (self.out / "journal").read_text())
        return self.out

    def boot(self, script: str) -> int:
        """Boot, run `script`, power off; the script's exit status. What it printed is in out/log. Unbootable when it
        never began, TimeoutError when it never ended."""
        for directory in (self.files, self.out, self.box / "disk"):
            directory.mkdir(parents=True, exist_ok=True)
        self.write("/probe", script, 0o755)
        self.write("/etc/systemd/system/probe.target", "[Unit]\nRequires=basic.target\nWants=probe.service\n")
        self.write(
            "/etc/systemd/system/probe.service",
            "[Unit]\nAfter=basic.target\n[Service]\nType=oneshot\nEnvironment=PYTHONUNBUFFERED=1\n"
            "ExecStart=/bin/sh -c '/probe >/out/log 2>&1; echo $$? >/out/status'\n"
            "ExecStopPost=/bin/systemctl --no-block exit\n",
        )
        groups = _own_cgroups(f"culvert-boot-{os.getpid()}")
        command = ["systemd-nspawn", "--quiet", f"--directory={self.box}/disk/root", f"--machine=culvert-{os.getpid()}"]
        command += ["--register=no", "--private-network", "--console=pipe", f"--bind={self.out}:/out"]
        packages = next(p for p in site.getsitepackages() if Path(p).is_dir())
        for seen, real in (("source", SOURCE), ("packages", packages), ("python", sys.base_prefix)):
            command.append(f"--bind-ro={real}:/opt/culvert/{seen}")
        command.append("--boot")
        for name, arguments in (("culvert", "-m agent.cli"), ("python", "")):
            self.write(f"/opt/culvert/bin/{name}", _PYTHON.format(*sys.version_info[:2], arguments), 0o755)
        if groups:
            command.insert(-1, "--keep-unit")
        command.append("systemd.unit=probe.target")
        start = ["unshare", "--mount", "--propagation=slave", "sh", "-c", _START, "sh", str(self.box), *groups, "--"]
        try:
            done = subprocess.run(
                [*start, *command], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=self.seconds
            )
            console = done.stdout + done.stderr
        except subprocess.TimeoutExpired as error:
            console = f"{error.stdout!r} {error.stderr!r}\nstill running after {self.seconds} s"
        finally:
            for group in groups:
                _end(Path(group))
        status = self.out / "status"
        if not status.exists() and (self.out / "log").exists():
            raise TimeoutError(f"booted, but the script did not end:\n{(self.out / 'log').read_text()[-3000:]}")
        if not status.exists():
            raise Unbootable(f"`{' '.join(command)}` said: {console[-2000:]}")
        return int(status.read_text())


def why_not() -> str:
    """What to install before a container can be booted; empty when nothing."""
    if shutil.which("systemd-nspawn") is None:
        return "systemd-nspawn is not installed: apt-get install systemd-container"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not installed, and the container's root is this machine's: apt-get install systemd"
    return ""


def _own_cgroups(name: str) -> list[str]:
    """Without systemd out here nobody makes the container a cgroup; so one in each tree that it will use."""
    if Path("/run/systemd/system").exists():
        return []
    root = Path("/sys/fs/cgroup")
    trees = [t for t in (root / "systemd", root / "unified", root) if (t / "cgroup.procs").exists()]
    return [str(tree / name) for tree in trees]


def _end(group: Path) -> None:
    """Kill what is still in the container's cgroup, and remove it."""
    for _ in range(100):
        for procs in group.glob("**/cgroup.procs"):
            for pid in procs.read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            for directory in sorted((d for d in group.glob("**") if d.is_dir()), reverse=True):
                directory.rmdir()
        except OSError:
            time.sleep(0.05)
            continue
        return
    raise OSError(f"cgroup {group} does not end")
