"""Imports for a process that runs for months: without modules that libraries import but we never use.

In their place are stand-ins. Some import the real module when somebody touches it; where the importer asks for names
in it at once, these are stand-ins, too, and say so loudly when they are used.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from agent import docstrings

_UNUSED = (
    "idna",  # trio's, for names of hosts that are not ASCII
    "msgspec.inspect",  # for schemas
    "shutil",  # of ctypes.util, for systems that look for libraries with a compiler
    "ssl",  # trio's, for TLS; ours is ca.tls
    "tempfile",  # like shutil
)
_UNUSED_NAMES = (
    "cryptography.hazmat.primitives.serialization.ssh",
    "email.utils",  # cryptography's, for addresses of people in certificates
    "pickle",  # structlog's, for loggers that somebody pickles
    "trio._dtls",
)


def begin() -> None:
    """From now on; to be called before trio is imported. 3 MB less, of which a second OpenSSL was one,
    and docstrings."""
    docstrings.leave_out()
    for name in _UNUSED:
        sys.modules.setdefault(name, Later(name))
    for name in _UNUSED_NAMES:
        sys.modules.setdefault(name, Absent(name))
    # That OpenSSL would come with hashlib after all. What we hash is short: Python's own will do.
    sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type] # how Python says that there is none


class Later(ModuleType):
    """A module that is imported when somebody asks for something in it."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the import system asks about modules
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)


class Absent(ModuleType):
    """A module that has whatever it is asked for; who calls it gets NotImplementedError."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)

        def called(*_: object, **__: object) -> None:
            raise NotImplementedError(f"{self.__name__}.{name} was not imported; see agent/lean.py")

        found = type(name, (), {"__new__": called})
        setattr(self, name, found)
        return found


@contextmanager
def instead(name: str, module: ModuleType | None) -> Iterator[None]:
    """Meanwhile importing `name` gives `module`, or fails as if it were not installed."""
    before = sys.modules.pop(name, None)
    sys.modules[name] = module  # type: ignore[assignment] # as above
    try:
        yield
    finally:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
