"""What can be set for a centre: /etc/culvert/central.toml, CULVERT_CENTRAL_* and the flags of `culvert central run`."""

from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import msgspec

from ca import endpoint
from ca.authority import Lives
from ca.contract import DEFAULT_PORT
from ca.duration import Duration
from ca.identity import check_name
from ca.lifetimes import Thresholds
from ca.resources.mesh import check_life
from ca.settings import Loaded, Seconds, load

FILE = Path("/etc/culvert/central.toml")
OWN_FILE = "central.toml"
"""Written by `culvert central init` into the centre's directory; FILE overrides it."""

OPERATOR_FILE = "operator.json"
"""The first operator's credential, in the centre's directory."""

PREFIX = "CULVERT_CENTRAL_"
DIRECTORY = Path("/var/lib/culvert/central")
PARENT = Path("/var/lib/culvert")
"""Where a mesh may be as well that was founded with `--dir /var/lib/culvert`; everything then finds it there."""


def usual_directory() -> Path:
    """The centre's directory where nothing is said of it: DIRECTORY, unless only PARENT holds a mesh."""
    return next((d for d in (DIRECTORY, PARENT) if _holds_mesh(d)), DIRECTORY)


def _holds_mesh(directory: Path) -> bool:
    try:
        return (directory / OPERATOR_FILE).exists() or (directory / OWN_FILE).exists()
    except OSError:  # not ours to look into
        return False


def _doc(text: str) -> msgspec.Meta:
    return msgspec.Meta(description=text)


class LifeSettings(msgspec.Struct, frozen=True):
    """How long what the centre signs is good for; a change holds for what is signed from then on."""

    root: Annotated[Seconds, _doc("Of the root, made by init.")] = Duration(3650 * 86400)
    issuing: Annotated[Seconds, _doc("Of the issuing certificate.")] = Duration(365 * 86400)
    node: Annotated[Seconds, _doc("Of a node's certificate.")] = Duration(7 * 86400)
    workload: Annotated[Seconds, _doc("Of a workload's, 1h to 90d, unless the Mesh says another.")] = Duration(86400)
    operator: Annotated[Seconds, _doc("Of an operator's credential.")] = Duration(30 * 86400)
    central: Annotated[Seconds, _doc("Of the centre's own; renewed while it runs.")] = Duration(7 * 86400)

    recovery: Annotated[Seconds, _doc("How long after its end a node still proves itself with its key.")] = Duration(
        30 * 86400
    )

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 1 and name not in ("recovery", "workload"):
                raise ValueError(f"lives.{name} must be a second at least")
        try:
            check_life(self.workload)
        except ValueError as e:
            raise ValueError(f"lives.workload: {e}") from e

    def lives(self) -> Lives:
        """As the authority takes them."""
        return Lives(**{n: timedelta(seconds=getattr(self, n)) for n in self.__struct_fields__})


Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class AlarmSettings(msgspec.Struct, frozen=True):
    """When the centre says that something is about to end, as the share of its life that is left."""

    renewed: Annotated[Share, _doc("For what renews itself at half its life: less left is overdue.")] = 0.25
    root: Annotated[Share, _doc("For the root, which does not.")] = 0.1

    def thresholds(self) -> Thresholds:
        """As the survey takes them."""
        return Thresholds(self.renewed, self.root)


class CentralSettings(msgspec.Struct, frozen=True):
    """All settings of one centre."""

    dir: Annotated[Path, _doc("The store, the keys and the operator's credential.")] = msgspec.field(
        default_factory=usual_directory
    )
    listen: Annotated[str, _doc("HOST:PORT to listen at.")] = f"0.0.0.0:{DEFAULT_PORT}"
    advertise: Annotated[str, _doc("HOST:PORT that join tokens carry; empty: the one of listen.")] = ""
    name: Annotated[str, _doc("The centre's own name, in its identity.")] = "central"
    tick: Annotated[Seconds, _doc("How long changes are gathered into one delta for all nodes.")] = Duration(0.05)
    stall: Annotated[Seconds, _doc("A node that takes nothing for so long is dropped.")] = Duration(30)
    connections: Annotated[int, msgspec.Meta(ge=8), _doc("Connections at once, sessions included.")] = 4096
    metrics: Annotated[str, _doc("HOST:PORT for Prometheus; empty: none.")] = "127.0.0.1:15014"
    log_level: Annotated[str, _doc("debug, info, warning or error.")] = "info"
    lives: LifeSettings = LifeSettings()
    alarms: AlarmSettings = AlarmSettings()

    def __post_init__(self) -> None:
        for name, where in (("listen", self.listen), ("advertise", self.advertise), ("metrics", self.metrics)):
            if where or name == "listen":
                try:
                    endpoint.split(where)
                except ValueError as e:
                    raise ValueError(f"{name} {e}") from e
        check_name(self.name, "name")
        if not self.tick > 0 or not self.stall > 0:
            raise ValueError("tick and stall must be longer than nothing")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level {self.log_level!r}: use debug, info, warning or error")

    @property
    def socket(self) -> Path:
        """Where a running centre serves this machine's root: no certificate, the file's mode is the proof."""
        return self.dir / "central.sock"


def load_central(
    environ: Mapping[str, str], flags: Mapping[str, object], file: Path | None = None
) -> Loaded[CentralSettings]:
    """The settings that hold; `file` must exist if given. SettingsError."""

    def layered(own: Path | None) -> Loaded[CentralSettings]:
        return load(
            CentralSettings,
            file=file or FILE,
            below=own,
            environ=environ,
            flags=flags,
            must_exist=file is not None,
            prefix=PREFIX,
        )

    # The directory says where its own file is, so it is looked up without that file first.
    return layered(layered(None).settings.dir / OWN_FILE)
