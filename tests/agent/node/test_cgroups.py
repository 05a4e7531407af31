import pytest
import trio

from agent.node.cgroups import Cgroups


@pytest.fixture
async def cgroups():
    made = Cgroups()
    yield made
    made.close()


async def test_a_unit_that_restarts_is_news(slice_, cgroups):
    unit = slice_ / "web.service"
    path = f"{slice_.name}/web.service"
    assert cgroups.locate([path]) == ({path: None}, [])
    seen = set()
    for _ in range(2):
        unit.mkdir()
        with trio.fail_after(1):
            await cgroups.news()
        found, _ = cgroups.locate([path])
        assert found == {path: (2, unit.stat().st_ino)}
        seen.add(found[path])
        unit.rmdir()
        with trio.fail_after(1):
            await cgroups.news()
        assert cgroups.locate([path]) == ({path: None}, [])
    assert len(seen) == 2


async def test_ancestors_that_come_later_are_followed(slice_, cgroups):
    path = f"{slice_.name}/a.slice/b.slice/c.service"
    cgroups.locate([path])
    for folder in ("a.slice", "a.slice/b.slice", "a.slice/b.slice/c.service"):
        (slice_ / folder).mkdir()
        with trio.fail_after(1):
            await cgroups.news()
        found, _ = cgroups.locate([path])
    assert found[path] == (4, (slice_ / "a.slice/b.slice/c.service").stat().st_ino)


async def test_what_is_no_cgroup_is_reported(cgroups):
    found, strange = cgroups.locate(["/", "../x"])
    assert found == {"/": None, "../x": None}
    assert len(strange) == 2


async def test_of_two_names_of_one_cgroup_the_first_counts(slice_, cgroups):
    """Two rules for the same would be refused by the kernel, and with them all others."""
    (slice_ / "web.service").mkdir()
    (slice_ / "other.service").mkdir()
    path, other = f"{slice_.name}/web.service", f"{slice_.name}/./other.service"
    located, strange = cgroups.locate([path, f"{cgroups.root}/{path}", other])
    assert located == {
        path: (2, (slice_ / "web.service").stat().st_ino),
        f"{cgroups.root}/{path}": None,
        other: (2, (slice_ / "other.service").stat().st_ino),
    }
    assert strange == [f"cgroup {cgroups.root}/{path}: it is the same as {path}, whose workload goes first"]
    assert all(not parent.children for parent in cgroups.parents(located) if parent.level == 1)


async def test_quiet_without_a_change(slice_, cgroups):
    cgroups.locate([f"{slice_.name}/web.service"])
    with trio.move_on_after(0.1) as scope:
        await cgroups.news()
    assert scope.cancelled_caught


async def test_parents_and_their_children_that_are_nobodys(slice_, cgroups):
    for name in ("web.service", "web.service/sub", "other.service", "a.slice", "a.slice/x.service"):
        (slice_ / name).mkdir()
    paths = [f"/{slice_.name}/{name}" for name in ("web.service", "a.slice/deep.service")]
    located, _ = cgroups.locate(paths)
    root, whole, inner = sorted(cgroups.parents(located), key=lambda p: p.level)
    assert (root.level, whole.level, inner.level) == (0, 1, 2)
    assert slice_.stat().st_ino in root.children
    assert (whole.number, inner.number) == (slice_.stat().st_ino, (slice_ / "a.slice").stat().st_ino)
    # Not web.service, which is a workload's, but what other workloads' cgroups are below.
    assert whole.children == {(slice_ / name).stat().st_ino for name in ("other.service", "a.slice")}
    assert inner.children == {(slice_ / "a.slice/x.service").stat().st_ino}
    assert cgroups.parents({}) == ()
    assert cgroups.parents({"../x": None, "/": None}) == ()
