from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from ca import x509
from ca.credential import Credential, CredentialError, load, save
from ca.identity import OperatorIdentity


@pytest.fixture
def credential() -> Credential:
    now, key = datetime.now(UTC), x509.new_key()
    issuing = x509.new_issuing(x509.new_root("shop.example", now, timedelta(days=9)), now, timedelta(days=8))
    leaf = x509.issue(issuing, OperatorIdentity("shop.example", "admin"), key.public_key(), now, timedelta(days=2))
    chain, roots = x509.pem(leaf, issuing.cert).decode(), "roots"
    return Credential("10.0.0.1:15012", "shop.example", "admin", chain, x509.key_pem(key).decode(), roots)


def test_what_is_saved_is_loaded(tmp_path: Path, credential: Credential) -> None:
    path = tmp_path / "operator.json"
    save(path, credential)
    save(path, credential)
    assert load(path) == credential
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    assert timedelta(days=1) < credential.ends - datetime.now(UTC) <= timedelta(days=2)
    assert "PRIVATE" not in repr(credential)


def test_others_must_not_read_it(tmp_path: Path, credential: Credential) -> None:
    path = tmp_path / "operator.json"
    save(path, credential)
    path.chmod(0o640)
    with pytest.raises(CredentialError, match="others can read it"):
        load(path)


@pytest.mark.parametrize("change", [{"key": "x"}, {"chain": "x"}, {"address": "x"}, {"version": "x"}])
def test_what_is_no_credential(tmp_path: Path, credential: Credential, change: dict[str, object]) -> None:
    path = tmp_path / "operator.json"
    path.write_bytes(msgspec.json.encode({**msgspec.to_builtins(credential), **change}))
    with pytest.raises(CredentialError, match=r"is no operator's credential"):
        load(path)
    path.write_text("{")
    with pytest.raises(CredentialError, match=r"is no operator's credential"):
        load(path)
    with pytest.raises(CredentialError, match="cannot be read"):
        load(tmp_path / "none")
