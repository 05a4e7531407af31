from pathlib import Path

import pytest

from agent.cli import calls
from agent.cli.output import Refused
from ca import central, founding
from ca.central import CentralSettings, load_central


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    parent = tmp_path / "culvert"
    monkeypatch.setattr(central, "PARENT", parent)
    monkeypatch.setattr(central, "DIRECTORY", parent / "central")
    monkeypatch.setattr(central, "FILE", tmp_path / "central.toml")
    monkeypatch.delenv("CULVERT_CENTRAL_DIR", raising=False)
    return parent, parent / "central"


def _found(directory: Path) -> None:
    founding.found(CentralSettings(dir=directory, listen="127.0.0.1:15012"), "shop.example", "admin")


@pytest.mark.parametrize("which", [0, 1], ids=["founded with --dir /var/lib/culvert", "as usual"])
def test_everybody_finds_the_mesh_where_it_was_founded(places: tuple[Path, Path], which: int) -> None:
    assert load_central({}, {}).settings.dir == places[1]
    _found(places[which])
    loaded = load_central({}, {})
    assert loaded.settings.dir == places[which]
    assert loaded.settings.listen == "127.0.0.1:15012"  # from the mesh's own file
    assert calls.find(None).name == "admin"


def test_of_two_the_usual_one(places: tuple[Path, Path]) -> None:
    for place in places:
        _found(place)
    assert load_central({}, {}).settings.dir == places[1]


def test_what_is_said_of_it_holds_for_commands_too(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _found(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="there is no credential"):
        calls.find(None)
    (tmp_path / "central.toml").write_text(f'dir = "{tmp_path}/elsewhere"\n')
    assert calls.find(None).name == "admin"
    monkeypatch.setenv("CULVERT_CENTRAL_DIR", str(tmp_path / "nowhere"))
    with pytest.raises(Refused, match=r"nowhere/operator\.json: there is no credential"):
        calls.find(None)
