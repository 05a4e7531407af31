"""For all tests: property tests draw the same examples every time (HYPOTHESIS_PROFILE=explore draws new ones, more);
whoever leaves something open fails, not the innocent one that runs when the garbage collector comes by; tests of whole
systems have two tries, except for promises; and where all is meant to run, what could be installed is not skipped."""

import gc
import os
import re
import traceback
import warnings
from collections.abc import Generator, Iterator
from functools import partial

import pytest
from hypothesis import settings

from tests.promises import NotEvenOnce

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


WHOLE_SYSTEMS = {"netns", "interop"}
ALL_IS_MEANT_TO_RUN = bool(os.environ.get("CI")) and os.geteuid() == 0
TO_INSTALL = re.compile("is not installed|apt-get install")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of whole systems may be tried once more: their processes share a machine with everything else that runs on
    it, and every one of them waits for some other with a bound. Which needed it stands in the summary, with the first
    failure. All others hold at once or fail, and so does what is `not_even_once` to be seen."""
    for item in items:
        if not WHOLE_SYSTEMS.isdisjoint(item.path.parts) and not config.option.usepdb:
            item.add_marker(pytest.mark.flaky(reruns=1, condition=partial(_may_be_tried_again, item)))


TIMER = pytest.StashKey[object]()
FINAL = pytest.StashKey[bool]()


def _may_be_tried_again(item: pytest.Item) -> bool:
    return FINAL not in item.stash


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: object) -> None:
    item.stash[TIMER] = settings


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The second try has as much time as the first: a failure ends the timer, which is set for both together."""
    if getattr(item, "execution_count", 1) > 1 and TIMER in item.stash:
        item.config.hook.pytest_timeout_cancel_timer(item=item)
        item.config.hook.pytest_timeout_set_timer(item=item, settings=item.stash[TIMER])


@pytest.hookimpl(wrapper=True, trylast=True)  # so that it is seen before the plugin decides on a second try
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a failed test left open is not held against the next one, which may be itself."""
    report = yield
    if report.failed and call.excinfo:
        if any(isinstance(part, NotEvenOnce) for part in _parts(call.excinfo.value, set())):
            item.stash[FINAL] = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _let_go(call.excinfo.value)
            gc.collect()
    if report.skipped and ALL_IS_MEANT_TO_RUN and isinstance(report.longrepr, tuple):
        _, _, reason = report.longrepr
        if TO_INSTALL.search(reason):
            item.stash[FINAL] = True
            report.outcome, report.longrepr = "failed", f"{reason} (not skipped: CI is set, and this is root)"
    return report


def _let_go(error: BaseException) -> None:
    """Empty the frames that it came through."""
    for part in _parts(error, set()):
        traceback.clear_frames(part.__traceback__)
        for frame, _ in traceback.walk_tb(part.__traceback__):
            _ = frame.f_locals  # Python's copy of what they held, which is brought up to date by this


def _parts(error: BaseException | None, seen: set[int]) -> Iterator[BaseException]:
    """The error, those it came of, and those it is a group of, as nurseries make them."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    yield error
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        yield from _parts(other, seen)


def pytest_collection_finish() -> None:
    """What was imported stays: not to look at it makes a collection after every test cheap (3 ms)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _closed_by_test(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    _collect(request.node.nodeid)


@pytest.fixture(autouse=True, scope="module")
def _closed_by_module(request: pytest.FixtureRequest) -> Iterator[None]:
    """Made before every other fixture of the module, so over after them."""
    yield
    _collect(f"{request.node.nodeid} (a fixture of the module)")


def _collect(who: str) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        gc.collect()
    left = [str(warning.message) for warning in found]
    assert not left, f"{who} left to the garbage collector: {'; '.join(left)}"
