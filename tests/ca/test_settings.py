from pathlib import Path
from typing import Annotated

import msgspec
import pytest

from ca.duration import Duration
from ca.settings import SettingsError, describe, load


class Lives(msgspec.Struct, frozen=True):
    operator: Annotated[Duration, msgspec.Meta(description="Life of an operator's certificate.")] = Duration(2592000)
    node: Duration = Duration(86400)


class Program(msgspec.Struct, frozen=True):
    dir: Annotated[Path, msgspec.Meta(description="Where everything is kept.")]
    port: Annotated[int, msgspec.Meta(ge=1, le=65535)] = 15012
    names: tuple[str, ...] = ()
    quiet: bool = False
    lives: Lives = Lives()

    def __post_init__(self) -> None:
        if self.lives.node > self.lives.operator:
            raise ValueError("lives.node is longer than lives.operator")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "program.toml"


def test_each_layer_overrides_the_one_below(file: Path) -> None:
    file.write_text('# comment\ndir = "/file"\nport = 1\nquiet = true\n\n[lives]\nnode = "2h"\n')
    loaded = load(
        Program,
        file=file,
        environ={"CULVERT_PORT": "2", "CULVERT_NAMES": "a, b", "CULVERT_LIVES_OPERATOR": "10d", "OTHER": "x"},
        flags={"port": "3", "dir": None},
    )
    assert loaded.settings == Program(
        dir=Path("/file"), port=3, names=("a", "b"), quiet=True, lives=Lives(Duration(864000), Duration(7200))
    )
    assert loaded.rows() == [
        ("dir", '"/file"', f"{file}:2"),
        ("port", "3", "flag --port"),
        ("names", '["a","b"]', "environment CULVERT_NAMES"),
        ("quiet", "true", f"{file}:4"),
        ("lives.operator", '"10d"', "environment CULVERT_LIVES_OPERATOR"),
        ("lives.node", '"2h"', f"{file}:7"),
    ]


def test_defaults_say_so(file: Path) -> None:
    loaded = load(Program, file=file, environ={}, flags={"dir": "/d"})
    assert loaded.origins["lives.node"] == "default"
    assert loaded.settings.lives.node == 86400


def test_every_fault_is_named_at_once(file: Path) -> None:
    file.write_text('prot = 1\nport = 70000\nquiet = "yes"\n[lifes]\nx = 1\n[lives]\nnod = "2h"\noperator = "soon"\n')
    with pytest.raises(SettingsError) as refused:
        load(Program, file=file, environ={"CULVERT_LIVES_NODE": "never"})
    assert str(refused.value).replace(str(file), "F").splitlines() == [
        "F:1: prot is no setting; did you mean port?",
        "F:2: port = 70000: Expected `int` <= 65535",
        'F:3: quiet = "yes": Expected `bool`, got `str`',
        "F:5: [lifes] is no section; did you mean lives?",
        "F:7: lives.nod is no setting; did you mean node?",
        "F:8: lives.operator = \"soon\": 'soon' is no length of time; write it as in 90s, 10m, 24h or 30d",
        "environment CULVERT_LIVES_NODE: lives.node = \"never\": 'never' is no length of time;"
        " write it as in 90s, 10m, 24h or 30d",
        "F: dir is missing; set it in the file, or as CULVERT_DIR",
    ]


def test_settings_that_contradict_each_other(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"environment CULVERT_LIVES_NODE: lives\.node is longer"):
        load(Program, file=file, environ={"CULVERT_LIVES_NODE": "90d", "CULVERT_DIR": "/d"})


def test_a_file_that_was_asked_for_must_be_there(file: Path) -> None:
    with pytest.raises(SettingsError, match="there is no such file"):
        load(Program, file=file, environ={"CULVERT_DIR": "/d"}, must_exist=True)


def test_a_file_that_is_no_toml(file: Path) -> None:
    file.write_text("dir = \n")
    with pytest.raises(SettingsError, match=r"is no TOML: .*line 1"):
        load(Program, file=file, environ={"CULVERT_DIR": "/d"})


def test_described_for_the_reference() -> None:
    described = {s.key: s for s in describe(Program)}
    assert described["lives.operator"].variable == "CULVERT_LIVES_OPERATOR"
    assert described["lives.operator"].doc == "Life of an operator's certificate."
    assert described["dir"].default is msgspec.NODEFAULT


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [("90s", 90, "90s"), ("10m", 600, "10m"), ("24h", 86400, "1d"), ("50ms", 0.05, "50ms"), (0, 0, "0s"), (5, 5, "5s")],
)
def test_durations(text: object, seconds: float, shown: str) -> None:
    duration = Duration.read(text)
    assert duration == seconds
    assert str(duration) == shown


@pytest.mark.parametrize("text", ["", "soon", "-1s", -1, True, None, "1y", float("inf"), float("nan")])
def test_what_is_no_duration(text: object) -> None:
    with pytest.raises(ValueError, match="no length of time"):
        Duration.read(text)
