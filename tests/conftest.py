"""For all tests: property tests draw the same examples every time (HYPOTHESIS_PROFILE=explore draws new ones, more);
whoever leaves something open fails, not the innocent one that runs when the garbage collector comes by; tests of whole
systems have two tries."""

import gc
import os
import traceback
import warnings
from collections.abc import Generator, Iterator

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


WHOLE_SYSTEMS = {"netns", "interop"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of whole systems may be tried once more: their processes share a machine with everything else that runs on
    it, and every one of them waits for some other with a bound. Which needed it stands in the summary, with the first
    failure. All others hold at once or fail."""
    for item in items:
        if not WHOLE_SYSTEMS.isdisjoint(item.path.parts) and not config.option.usepdb:
            item.add_marker(pytest.mark.flaky(reruns=1))


TIMER = pytest.StashKey[object]()


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: object) -> None:
    item.stash[TIMER] = settings


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """The second try has as much time as the first: a failure ends the timer, which is set for both together."""
    if getattr(item, "execution_count", 1) > 1 and TIMER in item.stash:
        item.config.hook.pytest_timeout_cancel_timer(item=item)
        item.config.hook.pytest_timeout_set_timer(item=item, settings=item.stash[TIMER])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a failed test left open is not held against the next one, which may be itself."""
    report = yield
    if report.failed and call.excinfo:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _let_go(call.excinfo.value, set())
            gc.collect()
    return report


def _let_go(error: BaseException | None, seen: set[int]) -> None:
    """Empty the frames that it came through."""
    if error is None or id(error) in seen:
        return
    seen.add(id(error))
    traceback.clear_frames(error.__traceback__)
    for frame, _ in traceback.walk_tb(error.__traceback__):
        _ = frame.f_locals  # Python's copy of what they held, which is brought up to date by this
    for other in (error.__cause__, error.__context__, *getattr(error, "exceptions", ())):
        _let_go(other, seen)


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
