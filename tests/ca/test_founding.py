import functools
from pathlib import Path

import pytest

from ca import founding
from ca.central import CentralSettings
from ca.resources.metadata import Key
from ca.store import Stage
from ca.store.sqlite import SqliteStore


@pytest.mark.parametrize(
    ("number", "stage"), [(1, Stage.BEGUN), (1, Stage.WRITTEN), (1, Stage.DURABLE), (2, Stage.BEGUN)]
)
def test_a_mesh_is_begun_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, stage: Stage
) -> None:
    def die(reached: Stage, commit: int) -> None:
        if (commit, reached) == (number, stage):
            raise KeyboardInterrupt

    settings = CentralSettings(dir=tmp_path / "centre", listen="127.0.0.1:15012")
    with monkeypatch.context() as patched:
        patched.setattr(founding.SqliteStore, "open", functools.partial(SqliteStore.open, hook=die))
        with pytest.raises(KeyboardInterrupt):
            founding.found(settings, "shop.example", "admin")
    begun = stage is Stage.DURABLE or number > 1
    with SqliteStore.open(settings.dir) as store:
        assert bool(store.issuers()) is begun
        assert [r.key for r in store.contents().resources] == [Key("Mesh", "", "mesh")] * begun
    if begun:
        assert founding.operator_offline(settings, "admin").trust_domain == "shop.example"
    else:
        founding.found(settings, "shop.example", "admin")
