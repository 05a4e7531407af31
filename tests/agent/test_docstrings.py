"""Against what the compiler makes of sources: ours, Python's, and those with every trap that is known."""

import dis
import py_compile
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import CodeType

import pytest

from agent.docstrings import KNOWN, bare

ROOT = Path(__file__).parents[2]
PYTHON = Path(sysconfig.get_paths()["stdlib"])
SOURCES = [
    *(path for top in ("agent", "ca", "redirect") for path in sorted((ROOT / top).rglob("*.py"))),
    *sorted(PYTHON.glob("*.py")),
    *sorted((PYTHON / "email").glob("*.py")),
]

pytestmark = pytest.mark.skipif(not KNOWN, reason="only the bytecode of Python 3.11 is known; others keep docstrings")


def pairs(before: CodeType, after: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    yield before, after
    for one, other in zip(before.co_consts, after.co_consts, strict=True):
        if isinstance(one, CodeType):
            yield from pairs(one, other)


def meaning(code: CodeType) -> list[tuple[str, object]]:
    """Every instruction with what it works on, but for code, which is looked at by itself, and for docstrings."""
    found: list[tuple[str, object]] = []
    for instruction in dis.get_instructions(code):
        value = type(instruction.argval) if isinstance(instruction.argval, CodeType) else instruction.argval
        if instruction.opname == "STORE_NAME" and value == "__doc__":
            found.pop()
        found.append((instruction.opname, repr(value)))
    return found


def test_nothing_else_changes() -> None:
    texts = left = 0
    for path in SOURCES:
        before = compile(path.read_bytes(), str(path), "exec")
        for one, other in pairs(before, bare(before)):
            assert meaning(one) == meaning(other), f"{path}: {one.co_qualname}"
            for name in dir(one):
                if name.startswith("co_") and name not in ("co_consts", "co_lines", "co_positions"):
                    assert getattr(one, name) == getattr(other, name)
            if one.co_consts != other.co_consts and one.co_flags & 1:
                texts += 1
                left += isinstance(other.co_consts[0], str)
    assert texts > 1000
    assert left == 0


TRAPS = '''
"""module"""
import dataclasses
def plain():
    """a docstring"""
def equal():
    """twice"""
    return "twice"
def without():
    return "a value"
def late():
    x = 1
    """no docstring"""
    return x
def nested():
    """outer"""
    def inner():
        """inner"""
        return "outer"
    return inner
async def waits():
    """a docstring"""
def gives():
    """a docstring"""
    yield "a docstring"
short = lambda: "value"
listed = ["x" for _ in range(2)]
lazily = ("y" for _ in range(2))
class Told:
    """a class"""
    text = "a class"
class Plain:
    """another"""
    def method(self):
        """a method"""
        return "method"
class Without:
    text = "Without"
class Late:
    first = 1
    __doc__ = "set"
@dataclasses.dataclass
class Data:
    """a dataclass"""
    a: int = 1
'''


def test_traps() -> None:
    scope: dict[str, object] = {"__name__": "traps"}
    code = compile(TRAPS, "traps", "exec")
    exec(bare(code), scope)
    docs = {name: getattr(value, "__doc__", None) for name, value in scope.items() if hasattr(value, "__qualname__")}
    assert docs == {
        "plain": None,
        "equal": "twice",
        "without": None,
        "late": None,
        "nested": None,
        "waits": None,
        "gives": "a docstring",
        "short": None,
        "lazily": None,
        "Told": "a class",
        "Plain": " ",
        "Without": None,
        "Late": "set",
        "Data": " ",
    }
    values = [
        *(scope[name]() for name in ("equal", "without", "late", "short")),
        scope["nested"]()(),
        [*scope["gives"]()],
        scope["listed"],
        [*scope["lazily"]],
        scope["Told"].text,
    ]
    assert values == ["twice", "a value", 1, "value", "outer", ["a docstring"], ["x"] * 2, ["y"] * 2, "a class"]


def test_modules_without_a_source_are_found(tmp_path: Path) -> None:
    source = tmp_path / "sourceless.py"
    source.write_text("value = 7")
    py_compile.compile(str(source), str(source.with_suffix(".pyc")))
    source.unlink()
    code = f"import sys\nfrom agent.docstrings import leave_out\nleave_out()\nsys.path.append({str(tmp_path)!r})\n"
    code += "import sourceless\nprint(sourceless.value)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("7\n", "")


def test_modules_are_imported_without() -> None:
    code = """
import colorsys
from agent.docstrings import leave_out
leave_out()
import fractions, trio
print(bool(colorsys.__doc__), fractions.__doc__, fractions.Fraction.limit_denominator.__doc__, trio.sleep.__doc__)
print(fractions.Fraction("1.5"), trio.run(trio.sleep, 0))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("True None None None\n3/2 None\n", "")
