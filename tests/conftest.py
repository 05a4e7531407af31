"""For all tests: property tests draw the same examples every time (HYPOTHESIS_PROFILE=explore draws new ones, more);
whoever leaves something open fails, not the innocent one that runs when the garbage collector comes by."""

import gc
import os
import warnings
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


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
