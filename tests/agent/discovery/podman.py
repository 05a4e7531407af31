"""Real containers of Podman, and its Docker API, in a place of the test's own: storage, sockets and network namespace.

The image is one static program. Where no container runs at all is a skip that shows the command and its error.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

IMAGE = "localhost/culvert/busybox:1"
# What a test machine may forbid to raise is set to what we have.
_LIMITS = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=100:100")


class Failed(Exception):
    """A command of the engine did; the message has it and its error."""


@dataclass
class Podman:
    """`enter` puts every program into a network namespace."""

    directory: Path
    enter: tuple[str, ...] = ()
    _service: "subprocess.Popen[bytes] | None" = None

    @property
    def socket(self) -> Path:
        return self.directory / "podman.sock"

    def __call__(self, *words: str) -> str:
        """`podman WORDS`; what it printed. Failed."""
        done = subprocess.run(self._command(*words), capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise Failed(f"`{' '.join(self._command(*words))}` said: {done.stderr.strip()[-500:]}")
        return done.stdout.strip()

    def run(self, name: str, *options: str, command: tuple[str, ...] = ("sleep", "1000"), **labels: str) -> None:
        """Start a container with labels culvert.io/...; the command is one of busybox, or a path."""
        marks = [f"--label=culvert.io/{k.replace('_', '-')}={v}" for k, v in labels.items()]
        program = () if "/" in command[0] else ("/bin/busybox",)
        self("run", "--detach", "--name", name, *self._own, *marks, *options, IMAGE, *program, *command)

    def begin(self, image: Path) -> None:
        """Load the image, and run it once."""
        self("import", str(image), IMAGE)
        self("run", "--rm", "--network=none", *self._own, IMAGE, "/bin/busybox", "true")

    @property
    def _own(self) -> tuple[str, ...]:
        return (f"--cgroup-parent=/{self.directory.name}", *_LIMITS)

    @contextlib.contextmanager
    def network(self, subnet: str) -> Iterator[str]:
        """A bridge network for the time of the block; its name. Its containers end with it, at once: a shell that is
        its container's first program hears no SIGTERM, and would be waited for."""
        name = self.directory.name  # addresses are lent by name, from a list that the whole machine shares
        self("network", "create", "--subnet", subnet, name)
        try:
            yield name
        finally:
            subprocess.run(
                self._command("network", "rm", "--force", "--time", "0", name), capture_output=True, timeout=60
            )

    def serve(self) -> None:
        """The API, until `rest`."""
        command = self._command("system", "service", "--time", "0", f"unix://{self.socket}")
        with (self.directory / "service.log").open("ab") as log:
            self._service = subprocess.Popen(command, stdout=log, stderr=log)
        for _ in range(200):
            if self.socket.exists():
                return
            time.sleep(0.05)
        raise Failed(f"`{' '.join(command)}` made no socket: {(self.directory / 'service.log').read_text()[-500:]}")

    def rest(self) -> None:
        """End the API; containers go on."""
        if self._service:
            self._service.kill()
            self._service.wait()
            self._service = None
            self.socket.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(self._command("rm", "--all", "--force", "--time", "0"), capture_output=True, timeout=60)
        self.rest()
        for _ in range(100):  # what tidies up after each container, on its own
            if not any(str(self.directory) in _command_line(p) for p in Path("/proc").glob("[0-9]*")):
                break
            time.sleep(0.05)
        # What a container that could not be removed has mounted would keep the directory from being removed.
        with open("/proc/self/mounts") as mounts:
            left = [line.split()[1] for line in mounts if line.split()[1].startswith(f"{self.directory}/")]
        for mount in reversed(left):
            subprocess.run(["umount", "--lazy", mount], capture_output=True)
        shutil.rmtree(self.directory, ignore_errors=True)
        for folder, _, _ in os.walk("/sys/fs/cgroup", topdown=False):
            if self.directory.name in Path(folder).parts:
                with contextlib.suppress(OSError):
                    os.rmdir(folder)

    def _command(self, *words: str) -> list[str]:
        base = ["podman", "--root", f"{self.directory}/storage", "--runroot", f"{self.directory}/run"]
        base += ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs", "--runtime", "runc"]
        base += ["--tmpdir", f"{self.directory}/tmp", "--network-config-dir", f"{self.directory}/networks"]
        return [*self.enter, *base, *words]


@contextlib.contextmanager
def podman(enter: tuple[str, ...] = ()) -> Iterator[Podman]:
    """Podman with the image loaded; skips where there is none, or where it runs nothing."""
    if os.geteuid() != 0:
        pytest.skip("containers of their own kind need root")
    for program, package in (("podman", "podman"), ("runc", "runc"), ("busybox", "busybox-static")):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install {package}")
    # Outside of pytest's directories: other runs clean those up while containers have them mounted.
    directory = Path(tempfile.mkdtemp(prefix="culvert-podman-"))
    made = Podman(directory, enter)
    root = directory / "image"
    (root / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin" / "busybox")
    subprocess.run(["tar", "-C", str(root), "-cf", str(directory / "image.tar"), "."], check=True)
    try:
        try:
            made.begin(directory / "image.tar")
        except Failed as error:
            pytest.skip(str(error))
        yield made
    finally:
        made.close()


def _command_line(process: Path) -> str:
    with contextlib.suppress(OSError):
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""
