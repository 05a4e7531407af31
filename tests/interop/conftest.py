"""Tests with Envoy at the other end of the tunnel, in network namespaces that each module makes itself."""

from collections.abc import Generator, Iterator

import pytest

from tests.interop import envoy
from tests.interop.scene import Scene
from tests.interop.scene import scene as running_scene
from tests.netns.conftest import why_not


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if "interop" in item.path.parts]
    reason = (why_not() or envoy.why_not()) if mine else ""
    for item in mine if reason else ():
        item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def running() -> Iterator[Scene]:
    with running_scene() as found:
        yield found


@pytest.fixture
async def scene(running: Scene) -> Scene:
    """One scene for all tests of a module, as if nothing had happened before."""
    await running.worker.forget()
    return running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the last words of both sides."""
    report = yield
    found = getattr(item, "funcargs", {}).get("running")
    if report.failed and isinstance(found, Scene):
        report.sections += [(f"log of {p.name}", p.tail(8)) for p in found.lab.processes if p.tail(1)]
    return report
