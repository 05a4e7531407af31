"""Modules imported without their docstrings: some 2 MB of text that nobody reads in a process that runs for months.

It is what `python -OO` does, without leaving out assertions, and from the same files of bytecode. Of each code
object the constant that holds the docstring is exchanged; nothing else changes. Where the constant is depends on the
compiler: this knows CPython 3.11's and leaves others alone.
"""

import sys
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from inspect import CO_OPTIMIZED
from opcode import opmap
from types import CodeType, ModuleType

KNOWN = sys.version_info[:2] == (3, 11)


def leave_out() -> None:
    """From now on, for what is not imported yet."""
    if KNOWN:
        kinds = (
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (_Loader, SOURCE_SUFFIXES),
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )
        sys.path_hooks.insert(0, FileFinder.path_hook(*kinds))
        sys.path_importer_cache.clear()


class _Loader(SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType | None:
        code = super().get_code(fullname)
        return bare(code) if code else None

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        module.__doc__ = None


def bare(code: CodeType) -> CodeType:
    """The same without docstrings of functions, and with a blank for those of classes: a dataclass without one would
    make one up.

    A function's is the first constant, which no instruction loads; a class's is the second, loaded once, to be stored.
    The compiler puts equal texts into one place, so one that serves for something else as well is loaded more often,
    and stays.
    """
    constants = [bare(c) if isinstance(c, CodeType) else c for c in code.co_consts]
    if code.co_flags & CO_OPTIMIZED:
        # Comprehensions, whose names are in brackets, have no place for one.
        if constants and isinstance(constants[0], str) and code.co_name[0] != "<" and not _loads(code, 0):
            constants[0] = None
    elif len(constants) > 1 and isinstance(constants[1], str) and "__doc__" in code.co_names:
        name = code.co_names.index("__doc__")
        stored = bytes([opmap["LOAD_CONST"], 1, opmap["STORE_NAME"], name % 256])
        if name < 256 and stored in code.co_code and _loads(code, 1) == 1:
            constants[1] = " "
    return code.replace(co_consts=tuple(constants))


def _loads(code: CodeType, number: int) -> int:
    """How many instructions, of two bytes each, load this constant (or one whose number has the same last byte)."""
    instructions, load = code.co_code, bytes([opmap["LOAD_CONST"], number])
    if load not in instructions:
        return 0
    return sum(instructions[at : at + 2] == load for at in range(0, len(instructions), 2))
