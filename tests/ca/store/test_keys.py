"""Private keys at rest."""

from pathlib import Path

import pytest

from ca.store import StoreError
from ca.store.keys import KeyDirectory

NAME = "ab" * 32


def test_a_key_comes_back_and_only_its_owner_could_read_it(tmp_path: Path) -> None:
    keys = KeyDirectory(tmp_path / "keys")
    keys.write(NAME, b"secret")
    keys.write(NAME, b"second")
    assert keys.read(NAME) == b"second"
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    (file,) = (tmp_path / "keys").iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_key_that_others_could_read_is_not_used(tmp_path: Path) -> None:
    keys = KeyDirectory(tmp_path)
    keys.write(NAME, b"secret")
    (tmp_path / f"{NAME}.pem").chmod(0o640)
    with pytest.raises(StoreError, match=r"open to others \(mode 0640\): chmod 600"):
        keys.read(NAME)


def test_a_missing_key_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is missing: bring it back"):
        KeyDirectory(tmp_path).read(NAME)


def test_a_key_that_cannot_be_kept_is_said(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be kept"):
        KeyDirectory(tmp_path / "keys").write(NAME, b"secret")


@pytest.mark.parametrize("name", ["", "../../etc/passwd", NAME.upper(), NAME + "\n"])
def test_only_fingerprints_are_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no fingerprint"):
        KeyDirectory(tmp_path).read(name)
