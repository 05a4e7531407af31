"""Private keys as files, mode 0600, in a directory of mode 0700."""

import contextlib
import os
import re
import stat
from pathlib import Path

from ca.store import StoreError

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class KeyDirectory:
    """Keys by fingerprint, each a file `FINGERPRINT.pem`.

    Files rather than rows: a backup or a replica of the database then holds no secret, and the root's key, which is
    needed only to renew the issuing one, can be moved away from the machine as one file and brought back.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, fingerprint: str) -> bytes:
        """PEM; StoreError if there is none, or others than the owner could read it."""
        path = self._file(fingerprint)
        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if mode & 0o077:
                    raise StoreError(
                        f"private key {path} is open to others (mode {mode:04o}): chmod 600 it, and think about who "
                        "could have read it"
                    )
                return file.read()
        except FileNotFoundError as error:
            raise StoreError(f"private key {path} is missing: bring it back from where it is kept") from error
        except OSError as error:
            raise StoreError(f"private key {path} cannot be read: {error.strerror}") from error

    def write(self, fingerprint: str, pem: bytes) -> None:
        """Keep a key, whole or not at all, on disk before this returns."""
        path = self._file(fingerprint)
        partial = path.with_suffix(".new")
        try:
            self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)
            handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(handle, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(handle)
            partial.rename(path)
            sync_directory(self._path)
            sync_directory(self._path.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise StoreError(f"private key {path} cannot be kept: {error.strerror}") from error

    def _file(self, fingerprint: str) -> Path:
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"{fingerprint!r} is no fingerprint")
        return self._path / f"{fingerprint}.pem"


def sync_directory(path: Path) -> None:
    """Have the names in a directory on disk."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
