from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.node import viewlog
from agent.node.files import Files, StateError
from agent.node.view import Intake, MeshView
from agent.node.viewlog import ViewLog
from ca.contract import LocalMatch, Private
from ca.resources.metadata import Key
from ca.resources.workload import Match
from tests.agent.views import delta, mesh, node, view, workload


@pytest.fixture
def files(tmp_path):
    return Files(tmp_path)


def names(files: Files) -> list[str]:
    return files.names("*")


def load(files: Files) -> MeshView | None:
    return ViewLog(files).load("n1")


def follow(log: ViewLog, start: MeshView, *frames) -> MeshView:
    intake = Intake(start)
    for frame in frames:
        change = intake.private(frame) if isinstance(frame, Private) else intake.delta(frame)
        if change:
            log.keep([change], change.view)
    return intake.view


def test_nothing_yet(files):
    assert load(files) is None


def test_a_whole_view_first_then_changes(files):
    log = ViewLog(files)
    start = view(mesh(), node("n1"), workload("web"), matches={"web": Match(uid=7)})
    log.keep([], start)
    size = (files.directory / "view.json").stat().st_size
    last = follow(
        log,
        start,
        delta(2, workload("db")),
        delta(3, workload("db", enrolled=False), delete=[Key("Workload", "shop", "web")]),
        Private(3, [LocalMatch("shop", "db", Match(netns="x"))]),
        delta(4, node("n2", "10.0.0.2")),
    )
    assert names(files) == ["view-1.log", "view.json"]
    assert (files.directory / "view.json").stat().st_size == size
    assert load(files) == last
    assert files.problems == []


def test_it_goes_on_where_it_was(files):
    start = view(mesh(), workload("web"))
    ViewLog(files).keep([], start)
    second = ViewLog(files)
    middle = follow(second, second.load("n1"), delta(2, workload("a")))
    third = ViewLog(files)
    assert third.load("n1") == middle
    last = follow(third, middle, delta(3, workload("b")))
    assert load(files) == last
    assert names(files) == ["view-1.log", "view.json"]


def test_an_outgrown_log_gives_way_to_a_new_view(files, monkeypatch):
    monkeypatch.setattr(viewlog, "LEAST", 2000)
    log = ViewLog(files)
    now = view(mesh())
    log.keep([], now)
    for revision in range(2, 40):
        now = follow(log, now, delta(revision, workload("web", ports=[1000 + revision])))
        assert load(files) == now
    assert sum((files.directory / n).stat().st_size for n in names(files)) < 5000
    assert len(names(files)) <= 2


@pytest.mark.parametrize("harm", ["cut", "flipped", "foreign"])
def test_a_torn_end_is_forgotten_and_not_written_after(files, harm):
    log = ViewLog(files)
    start = view(mesh())
    log.keep([], start)
    middle = follow(log, start, delta(2, workload("a")))
    follow(log, middle, delta(3, workload("b")))
    path = files.directory / "view-1.log"
    data = path.read_bytes()
    path.write_bytes(
        {
            "cut": data[:-5],
            "flipped": data[:-9] + b"x" + data[-8:],
            "foreign": data[: data.index(b"\n") + 1] + b"hello\n",
        }[harm]
    )
    again = ViewLog(files)
    assert again.load("n1") == middle
    last = follow(again, middle, delta(3, workload("c")))
    assert load(files) == last


def test_a_log_of_an_older_view_is_not_replayed(files):
    """A crash between the new view and the removal of the old log."""
    log = ViewLog(files)
    start = view(mesh(), workload("web"))
    log.keep([], start)
    now = follow(log, start, delta(2, workload("web", ports=[81])))
    old = (files.directory / "view-1.log").read_bytes()
    newest = view(mesh(), workload("web", ports=[82]), revision=3)
    fresh = ViewLog(files)
    fresh.load("n1")
    fresh._room = 0
    fresh.keep([], newest)
    files.append("view-1.log", old)
    again = ViewLog(files)
    assert again.load("n1") == newest != now
    last = follow(again, newest, delta(4, workload("b")))
    assert load(files) == last


def test_a_damaged_view_counts_as_none_with_its_log(files):
    log = ViewLog(files)
    start = view(mesh())
    log.keep([], start)
    follow(log, start, delta(2, workload("a")))
    path = files.directory / "view.json"
    path.write_bytes(path.read_bytes()[:-20])
    again = ViewLog(files)
    assert again.load("n1") is None
    assert len(files.problems) == 1
    fresh = view(mesh(), workload("z"), revision=9)
    again.keep([], fresh)
    assert load(files) == fresh


def test_a_view_of_another_node_is_not_ours(files):
    ViewLog(files).keep([], view(mesh(), on="n2"))
    assert load(files) is None


def test_a_version_with_other_kinds_asks_for_everything(files, monkeypatch):
    monkeypatch.setattr(viewlog, "known_kinds", lambda: ["Mesh"])
    start = view(mesh(), workload("web"), revision=7)
    ViewLog(files).keep([], start)
    monkeypatch.undo()
    log = ViewLog(files)
    saved = log.load("n1")
    assert (saved.snapshot, saved.incarnation) == (start.snapshot, "")
    last = follow(log, saved, delta(8, mesh(), workload("a"), reset=True))
    assert load(files) == last


def test_a_full_disk_is_said_and_made_good(files, monkeypatch):
    log = ViewLog(files)
    start = view(mesh())
    log.keep([], start)
    intake = Intake(start)
    change = intake.delta(delta(2, workload("a")))

    def full(*_: object) -> None:
        raise StateError("no space left")

    monkeypatch.setattr(files, "append", full)
    with pytest.raises(StateError):
        log.keep([change], change.view)
    monkeypatch.undo()
    log.keep([], change.view)
    assert load(files) == change.view


steps = st.tuples(st.dictionaries(st.sampled_from("abc"), st.booleans()), st.booleans(), st.booleans())


@settings(max_examples=25, deadline=None)  # every step waits for the disk
@given(st.lists(steps, max_size=8))
def test_whatever_happened_it_comes_back(tmp_path_factory, steps):
    files = Files(Path(tmp_path_factory.mktemp("views")))
    log = ViewLog(files)
    intake = Intake(view(mesh()))
    log.keep([], intake.view)
    for revision, (put, reset, restart) in enumerate(steps, 2):
        resources = [workload(n, enrolled=e) for n, e in put.items()]
        intake.private(Private(revision, [LocalMatch("shop", n, Match(uid=1)) for n in put]))
        change = intake.delta(delta(revision, *resources, *([mesh()] if reset else []), reset=reset))
        log.keep([change], change.view)
        if restart:
            log = ViewLog(files)
            assert log.load("n1") == intake.view
    assert ViewLog(files).load("n1") == intake.view
