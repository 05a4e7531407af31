"""Small files that a crash at any moment leaves either as they were or as they are to be.

Every file is 0600 and begins with a line that has the SHA-256 of the rest; PEM readers skip that line. It is replaced
whole: written beside, fsync, rename, fsync of the folder. A file that does not hold what its line says is renamed to
NAME.damaged, reported, and counts as absent. Blocking; callers use threads.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

_T = TypeVar("_T")
_HEAD = b"# culvert 1 sha256="


class StateError(Exception):
    """The state directory cannot be used; the message says why and what to do."""


class Files:
    """The files below `directory` and its `folders`, which are made (0700) if they are not there. `problems` says what
    was set aside."""

    def __init__(self, directory: Path, *folders: str) -> None:
        self.directory = directory
        self.problems: list[str] = []
        self._writing = threading.Lock()
        try:
            for folder in ("", *folders):
                (directory / folder).mkdir(mode=0o700, parents=True, exist_ok=True)
                for leftover in (directory / folder).glob("*.new"):
                    leftover.unlink()
            directory.chmod(0o700)
        except OSError as error:
            raise StateError(
                f"state directory {directory}: {error.strerror}; run as root, or choose another with state_dir"
            ) from error

    def names(self, pattern: str) -> list[str]:
        """The files that match, in order."""
        return sorted(str(p.relative_to(self.directory)) for p in self.directory.glob(pattern) if p.is_file())

    def exists(self, name: str) -> bool:
        """Whether there is such a file, whatever it holds."""
        return (self.directory / name).exists()

    def read(self, name: str, decode: Callable[[bytes], _T]) -> _T | None:
        """What `decode` makes of the file; None if it is absent or damaged. `decode` says that it is by a ValueError or
        any of the errors of `ca`, which are none of ours to list: whatever is wrong with a file, it is set aside. With
        a StateError it says that something else is."""
        data = self.read_raw(name)
        if data is None:
            return None
        head, newline, body = data.partition(b"\n")
        try:
            if not newline or head != _HEAD + hashlib.sha256(body).hexdigest().encode():
                raise ValueError("its checksum does not fit")
            return decode(body)
        except StateError:
            raise  # nothing is wrong with the file
        except Exception as error:
            path = self.directory / name
            with contextlib.suppress(OSError):
                path.replace(path.with_name(path.name + ".damaged"))
            self.problems.append(f"{path} is damaged ({error}): set aside as {path.name}.damaged")
            return None

    def read_raw(self, name: str) -> bytes | None:
        """The bytes of a file without that line; None if it is absent."""
        path = self.directory / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{path}: cannot be read: {error.strerror}; run as root") from error

    def write(self, name: str, body: bytes) -> None:
        """Replace the file."""
        path = self.directory / name
        beside = path.with_name(path.name + ".new")
        with self._writing, _told(path, "written"):
            with open(_open(beside, os.O_TRUNC), "wb") as file:
                file.write(_HEAD + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            _sync(path.parent)

    def append(self, name: str, data: bytes) -> None:
        """Add to a file without that line, and see that it is on disk. After a StateError some of it may be."""
        path = self.directory / name
        with self._writing, _told(path, "written"):
            new = not path.exists()
            with open(_open(path, os.O_APPEND), "ab") as file:
                file.write(data)
                file.flush()
                os.fdatasync(file.fileno())
            if new:
                _sync(path.parent)

    def remove(self, name: str) -> None:
        """Remove the file, if it is there."""
        path = self.directory / name
        with self._writing, _told(path, "removed"):
            path.unlink(missing_ok=True)
            _sync(path.parent)


@contextlib.contextmanager
def _told(path: Path, what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StateError(f"{path}: cannot be {what}: {error.strerror}") from error


def _open(path: Path, how: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | how, 0o600)
    os.fchmod(fd, 0o600)
    return fd


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
