"""Imports go downward only (ARCHITECTURE.md, "Floors"): read from every source, those inside functions as well."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

NODE = {"agent.node", "agent.checks", "agent.discovery", "agent.telemetry"}
WORKER = {"agent.worker", "agent.tunnel", "agent.relay"}

# Folder -> the folders of the agent that it may import, besides itself.
BELOW: dict[str, set[str]] = {
    "ca": set(),
    "redirect": set(),
    "agent": set(),
    "agent.checks": {"agent"},
    "agent.discovery": {"agent"},
    "agent.telemetry": {"agent"},
    "agent.node": {"agent", *NODE},
    "agent.relay": {"agent", "agent.tunnel"},  # carries streams
    "agent.tunnel": {"agent", "agent.relay"},  # hangs in its loop
    "agent.worker": {"agent", *WORKER},
    "agent.lab": {"agent"},
    "agent.cli": {"agent", "agent.lab", "agent.worker", *NODE},  # `agent run` forks the first workers
}
SERVER_SIDE = ["authority", "central", "centre", "registry", "server", "store"]


def folder(path: Path) -> str:
    """The floor that a source or module is on; `ca` and `redirect` are one each."""
    parts = path.relative_to(ROOT).parts
    deep = parts[0] == "agent" and len(parts) > 1 and ROOT.joinpath(*parts[:2]).is_dir()
    return ".".join(parts[:2] if deep else parts[:1])


def imported(source: str) -> Iterator[str]:
    """The modules (or names in modules) of ours that `source` asks for."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are written in full"
            names = [f"{node.module}.{name.name}" for name in node.names]
        elif isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        else:
            continue
        yield from (name for name in names if name.split(".")[0] in {"agent", "ca", "redirect"})


def faults(where: str, source: str) -> list[str]:
    """What a source in the folder `where` imports although it may not."""
    found = []
    for name in imported(source):
        package = name.split(".")[0]
        target = folder(ROOT.joinpath(*name.split(".")))
        if package == "agent":
            wrong = target != where and target not in BELOW[where]
        elif where in {"ca", "redirect"}:
            wrong = package != where
        else:
            wrong = where != "agent.cli" and package == "ca" and name.split(".")[1] in SERVER_SIDE
        if wrong:
            found.append(name)
    return found


@pytest.mark.parametrize("where", BELOW)
def test_imports_go_downward(where: str):
    sources = [path for top in ("agent", "ca", "redirect") for path in (ROOT / top).rglob("*.py")]
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources
        if folder(path) == where
        for name in faults(where, path.read_text())
    ]
    assert not wrong, f"{where} may import {sorted(BELOW[where])} of the agent, not:\n" + "\n".join(wrong)


def test_every_folder_has_its_floor():
    assert {folder(path) for top in ("agent", "ca", "redirect") for path in (ROOT / top).rglob("*.py")} == set(BELOW)


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("agent.worker", "from agent.node.state import State"),
        ("agent.worker", "from agent.node import state"),
        ("agent.node", "def late():\n    import agent.worker.worker"),
        ("agent", "from agent.worker.inbound import Inbound"),
        ("agent.tunnel", "from agent.worker.budgets import Budgets"),
        ("agent.node", "from ca.authority import Authority"),
        ("agent.node", "from ca import store"),
        ("ca", "from agent.settings import AgentSettings"),
        ("redirect", "import ca.identity"),
    ],
)
def test_an_import_upward_is_found(where: str, line: str):
    assert faults(where, line)


def test_the_sides_of_a_node_meet_in_messages_only():
    assert not any(a in BELOW[b] or b in BELOW[a] for a, b in product(NODE, WORKER))


def test_a_worker_holds_only_its_own_side_in_memory():
    code = "import sys, agent.worker.worker; print(*(name for name in sys.modules if name.startswith('agent.')))"
    held = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "agent.worker.inbound" in held
    assert not [name for name in held if ".".join(name.split(".")[:2]) in {*NODE, "agent.cli", "agent.lab"}]
