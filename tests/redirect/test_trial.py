"""The trial of a whole table, in a namespace of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from redirect.desired import Marks
from redirect.namespace import NamespaceError, in_scratch
from redirect.trial import owned, told, trial


def test_this_kernel_takes_it_and_nothing_is_left() -> None:
    try:
        assert trial(Marks()) == []
    except NamespaceError as error:
        pytest.skip(str(error))
    assert trial(Marks(), cgroups=False) == []


def test_this_kernel_knows_owners_and_when_they_go() -> None:
    try:
        assert owned(Marks())
    except NamespaceError as error:
        pytest.skip(str(error))
    assert told(Marks()) == ""


def test_a_scratch_namespace_is_empty_and_not_ours() -> None:
    try:
        lines = in_scratch(lambda: Path("/proc/thread-self/net/dev").read_text().splitlines()[2:])
    except NamespaceError as error:
        pytest.skip(str(error))
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]


def test_without_the_capability_it_says_so() -> None:
    script = "from redirect.trial import trial; from redirect.desired import Marks\nprint(trial(Marks()))"
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-c", script],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "NamespaceError: cannot make a network namespace" in done.stderr
    assert "CAP_SYS_ADMIN" in done.stderr


def test_what_the_kernel_refuses_is_told() -> None:
    """Without CAP_NET_ADMIN the namespace can be made, but not ruled."""
    script = "from redirect.trial import trial; from redirect.desired import Marks\nprint(trial(Marks()))"
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", script],
        capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert "loopback cannot be brought up" in done.stderr or "CAP_NET_ADMIN" in done.stdout
