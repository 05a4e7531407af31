"""Run a function inside another network namespace.

A network namespace belongs to a thread, and a thread that has moved must never be lent to anyone else: each call makes
a thread of its own and lets it end. What the function opens there (sockets, netlink) stays in that namespace and works
from every thread afterwards.
"""

import ctypes
import errno
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")

CLONE_NEWNET = 0x40000000
NAMED = "/run/netns"


class NamespaceError(Exception):
    """The namespace cannot be entered: it is gone, is none, or we may not."""


def namespace_path(path_or_name: str) -> str:
    """The file of a namespace: names are those of `ip netns`, anything with a slash is a path."""
    return path_or_name if "/" in path_or_name else f"{NAMED}/{path_or_name}"


def in_namespace(path_or_name: str, function: Callable[[], _T]) -> _T:
    """What `function` returns, or raises, in a fresh thread inside the namespace. Blocks until it is done."""
    call = _Call(namespace_path(path_or_name), function)
    thread = threading.Thread(target=call.run, name=f"netns {path_or_name}", daemon=True)
    thread.start()
    thread.join()
    return call.outcome()


def in_scratch(function: Callable[[], _T]) -> _T:
    """As `in_namespace`, inside a new network namespace that ends with the call, unless a socket keeps it."""
    call = _Call("", function)
    thread = threading.Thread(target=call.run, name="netns scratch", daemon=True)
    thread.start()
    thread.join()
    return call.outcome()


class _Call(Generic[_T]):
    """`path` empty: a new namespace."""

    def __init__(self, path: str, function: Callable[[], _T]) -> None:
        self._path = path
        self._function = function
        self._results: list[_T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            enter(self._path) if self._path else _leave()
            self._results.append(self._function())
        except BaseException as error:
            self._error = error

    def outcome(self) -> _T:
        if self._error is not None:
            raise self._error
        return self._results[0]


def enter(path: str) -> None:
    """Move the calling thread into the namespace, for good: for a thread or process that has no other work."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        hint = {
            errno.ENOENT: "it is gone or was never made; `ip netns list` shows the named ones",
            errno.EACCES: "another user's namespace; CAP_SYS_PTRACE is needed to look into /proc",
        }.get(error.errno or 0, "")
        raise NamespaceError(_text("cannot open", path, error, hint)) from error
    try:
        # Looked up per call: os.setns exists from Python 3.12 on only.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(fd, CLONE_NEWNET) != 0:
            code = ctypes.get_errno()
            hint = {
                errno.EPERM: "entering it needs CAP_SYS_ADMIN here and in the user namespace that owns it",
                errno.EINVAL: "the file is not a network namespace",
            }.get(code, "")
            raise NamespaceError(_text("cannot enter", path, OSError(code, os.strerror(code)), hint))
    finally:
        os.close(fd)


def _leave() -> None:
    """Move the calling thread into a network namespace of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        hint = " (it takes CAP_SYS_ADMIN)" if code == errno.EPERM else ""
        raise NamespaceError(f"cannot make a network namespace: {os.strerror(code)}{hint}")


def _text(what: str, path: str, error: OSError, hint: str) -> str:
    return f"{what} network namespace {path}: {error.strerror}" + (f" ({hint})" if hint else "")
