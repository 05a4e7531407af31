"""Whole-system tests: real kernel, real TLS and real processes, in network namespaces that each module makes itself."""

import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Generator, Iterator

import pytest

from tests.cgroups import own_slice
from tests.netns.town import Town
from tests.netns.town import town as running_town
from tests.netns.unit import Unit, open_unit


def why_not() -> str:
    """The reason why no lab can be opened here; empty when one can."""
    if os.geteuid() != 0:
        return f"whole-system tests make network namespaces: run `make test` as root (this is uid {os.geteuid()})"
    for program in ("unshare", "nsenter", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} is not installed: apt-get install util-linux"
    done = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True)
    return f"`unshare --net true` said: {done.stderr.strip()}" if done.returncode else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = why_not()
    if reason:
        for item in items:
            if "netns" in item.path.parts:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="module")
def town(request: pytest.FixtureRequest) -> Iterator[Town]:
    """One town for all tests of a module; each leaves it as it found it. A module may set WORKERS."""
    with running_town(getattr(request.module, "WORKERS", 0)) as found:
        yield found


@pytest.fixture
def parent() -> Iterator[str]:
    """The name of a cgroup for units to come and go in."""
    with own_slice() as path:
        yield path.name


@pytest.fixture
async def unit(parent: str) -> AsyncIterator[Unit]:
    """A unit below `parent`, enrolled, and the server that it calls."""
    async with open_unit(parent) as made:
        yield made


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows the last words of centre and agents."""
    report = yield
    found = getattr(item, "funcargs", {}).get("town")
    if report.failed and isinstance(found, Town):
        report.sections += [(f"log of {p.name}", p.tail(8)) for p in found.lab.processes if p.tail(1)]
    return report
