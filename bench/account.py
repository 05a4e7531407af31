"""CPU, memory and descriptors of a group of processes: a cgroup, so that whatever a program forks is counted too, also
what has ended since. The kernel keeps a cgroup's CPU to the microsecond.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from redirect.cgroup import mount_point


@dataclass(frozen=True, slots=True)
class Memory:
    """MiB. `pss` counts a page shared by n processes as 1/n in each, `rss` as a whole one in each."""

    pss: float
    rss: float


@dataclass(frozen=True, slots=True)
class Account:
    """One cgroup, made by the lab; `path` is below the mount of cgroup v2."""

    path: str

    @property
    def directory(self) -> Path:
        return Path(mount_point() or "", self.path)

    def pids(self) -> list[int]:
        """Every process in it now."""
        return [int(pid) for pid in (self.directory / "cgroup.procs").read_text().split()]

    def cpu(self) -> float:
        """CPU seconds used so far by all that ever ran in it or below it."""
        found = re.search(r"^usage_usec (\d+)", (self.directory / "cpu.stat").read_text(), re.M)
        assert found
        return int(found[1]) / 1e6

    def memory(self) -> Memory:
        """What its processes hold together."""
        pss = rss = 0
        for text in self._read("smaps_rollup"):
            fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", text, re.M))
            pss += int(fields.get("Pss", 0))
            rss += int(fields.get("Rss", 0))
        return Memory(pss / 1024, rss / 1024)

    def descriptors(self) -> int:
        """File descriptors that its processes have open together."""
        count = 0
        for pid in self.pids():
            try:
                count += len(list(Path("/proc", str(pid), "fd").iterdir()))
            except FileNotFoundError:  # it ended meanwhile
                continue
        return count

    def _read(self, name: str) -> Iterator[str]:
        for pid in self.pids():
            try:
                yield Path("/proc", str(pid), name).read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
