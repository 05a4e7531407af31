import os
from pathlib import Path

import pytest

from redirect.cgroup import children, find, locate, mount_point

HYBRID = """31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
41 31 0:38 / {root} rw,relatime shared:4 - cgroup2 cgroup2 rw
"""


@pytest.fixture
def root(mounts: str) -> str:
    """Where that one is mounted."""
    return str(mount_point(mounts))


@pytest.fixture
def mounts(tmp_path: Path) -> str:
    """A hybrid layout whose cgroup2 mount has a blank in its name."""
    root = tmp_path / "uni fied"
    (root / "system.slice" / "web.service").mkdir(parents=True)
    file = tmp_path / "mountinfo"
    file.write_text(HYBRID.format(root=str(root).replace(" ", r"\040")))
    return str(file)


def test_mount_is_found_and_unescaped(mounts: str) -> None:
    assert str(mount_point(mounts)).endswith("/uni fied")


@pytest.mark.parametrize(
    "path", ["/system.slice/web.service", "system.slice/web.service", "{root}/system.slice/web.service"]
)
def test_level_and_id(root: str, path: str) -> None:
    inode = os.stat(f"{root}/system.slice/web.service").st_ino
    assert locate(path.format(root=root), root) == (2, inode)


def test_absent_is_none(root: str, tmp_path: Path) -> None:
    assert locate("/system.slice/other.service", root) is None
    (tmp_path / "no-cgroup2").write_text(HYBRID.splitlines()[0] + "\n")
    assert mount_point(str(tmp_path / "no-cgroup2")) is None


@pytest.mark.parametrize("path", ["", "/", "/system.slice/../.."])
def test_the_root_and_dots_are_refused(root: str, path: str) -> None:
    with pytest.raises(ValueError, match="does not name a cgroup"):
        locate(path, root)


def test_a_cgroup_made_again_has_another_id() -> None:
    root = mount_point()
    if root is None or not os.access(root, os.W_OK):
        pytest.skip(f"os.mkdir below {root}: cgroup v2 is not mounted or not ours to write")
    name = f"cv-redir-{os.getpid()}"
    ids = []
    for _ in range(2):
        os.mkdir(f"{root}/{name}")
        try:
            ids.append(locate(f"/{name}", root))
        finally:
            os.rmdir(f"{root}/{name}")
    assert ids[0] != ids[1]
    assert [found and found[0] for found in ids] == [1, 1]
    assert locate(f"/{name}", root) is None


def test_children_and_finding_one_by_its_number(root: str) -> None:
    number, inside = children("", root) or (0, {})
    slice_, web = (os.stat(f"{root}/system.slice{tail}").st_ino for tail in ("", "/web.service"))
    assert (number, inside) == (os.stat(root).st_ino, {"system.slice": slice_})
    assert children("nowhere", root) is None
    assert find(web, "", root) == find(web, "system.slice", root) == "system.slice/web.service"
    assert find(slice_, "system.slice", root) == "system.slice"
    assert find(slice_, "system.slice/web.service", root) is None
    assert find(web, "nowhere", root) is None
    assert find(1, "", root) is None
