"""Settings in layers: default < TOML file < environment < flag, each value knowing where it came from.

A program describes its settings as one frozen msgspec Struct. A field that is itself a Struct is a section of the file;
sections do not nest further. What a field means stands in `Annotated[..., msgspec.Meta(description=...)]`, so that
`culvert config show` and the reference have one source. In the environment `name` of section `lives` is
CULVERT_LIVES_NAME and a list is separated by commas. Nothing is half taken: every fault of all layers is reported at
once and no settings come back.
"""

import re
import tomllib
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar

import msgspec

from ca.duration import Duration
from ca.hints import did_you_mean

S = TypeVar("S", bound=msgspec.Struct)

HEX = {"base": 16}
"""In the Meta of a number that people read so; in the environment it may be written so as well."""

Seconds = Annotated[Duration, msgspec.Meta(extra={"unit": "time"})]


class SettingsError(Exception):
    """The settings cannot be used; `faults` names each wrong one with its place, its cause and what would be right."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as described: its dotted key, where the environment has it, and what it means."""

    key: str
    variable: str
    type: Any
    doc: str
    default: Any


@dataclass(frozen=True, slots=True)
class Loaded(Generic[S]):
    """Settings that hold, and for each dotted key where its value came from."""

    settings: S
    origins: Mapping[str, str]

    def rows(self) -> list[tuple[str, str, str]]:
        """(key, value as it would be written, origin) of every setting, in the order described."""
        return [
            (s.key, written(get(self.settings, s.key), hexadecimal(s.type)), self.origins[s.key])
            for s in describe(type(self.settings))
        ]


def describe(program: type[msgspec.Struct], prefix: str = "CULVERT_") -> list[Setting]:
    """Every setting of a program, sections flattened."""
    return [
        Setting(key, prefix + re.sub(r"[.-]", "_", key).upper(), field.type, _doc(field.type), _default(field))
        for key, field in _fields(program)
    ]


def load(
    program: type[S],
    *,
    file: Path | None = None,
    below: Path | None = None,
    environ: Mapping[str, str],
    flags: Mapping[str, object] | None = None,
    must_exist: bool = False,
    prefix: str = "CULVERT_",
) -> Loaded[S]:
    """Put the layers together. `flags` has dotted keys; a flag of None was not given. A `file` that is absent counts
    as empty unless `must_exist`; what it does not say, the file `below` may. Raises SettingsError with every fault."""
    known = {s.key: s for s in describe(program, prefix)}
    values = {s.key: s.default for s in known.values() if s.default is not msgspec.NODEFAULT}
    origins = dict.fromkeys(values, "default")
    faults: list[str] = []

    def take(key: str, raw: object, origin: str, place: str, strict: bool) -> None:
        setting = known[key]
        try:
            if isinstance(raw, str) and hexadecimal(setting.type):
                raw = _number(raw)
            values[key] = msgspec.convert(raw, setting.type, strict=strict, dec_hook=_decode)
            origins[key] = origin
        except (msgspec.ValidationError, ValueError) as e:
            faults.append(f"{place}: {key} = {_shown(raw)}: {_cause(e)}")

    for path, needed in ((below, False), (file, must_exist)):
        for line, key, raw in _read(path, needed, faults) if path else ():
            place = f"{path}:{line}" if line else str(path)
            if key in known:
                take(key, raw, place, place, strict=True)
            else:
                faults.append(f"{place}: {_unknown(key, known)}")
    for setting in known.values():
        if (text := environ.get(setting.variable)) is not None:
            raw = [p.strip() for p in text.split(",") if p.strip()] if _is_list(setting.type) else text
            origin = f"environment {setting.variable}"
            take(setting.key, raw, origin, origin, strict=False)
    for key, given in (flags or {}).items():
        if given is not None:
            origin = f"flag --{key.rpartition('.')[2].replace('_', '-')}"
            take(key, given, origin, origin, strict=False)
    faults += [
        f"{file or 'settings'}: {key} is missing; set it in the file, or as {setting.variable}"
        for key, setting in known.items()
        if key not in values and not any(f": {key} = " in fault for fault in faults)
    ]
    if faults:
        raise SettingsError(faults)
    try:
        return Loaded(_build(program, values), origins)
    except ValueError as e:
        # Such a message begins with the setting it is about, which says whose word was wrong.
        said = origins.get(re.split(r"[ :]", str(e), maxsplit=1)[0], "default")
        raise SettingsError([f"{said if said != 'default' else file or 'settings'}: {e}"]) from e


def get(settings: msgspec.Struct, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, _attribute(type(value), part))
    return value


def hexadecimal(annotation: Any) -> bool:
    """Whether people read numbers of this type to the base of 16."""
    metas = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is Annotated else ()
    return any(isinstance(m, msgspec.Meta) and m.extra == HEX for m in metas)


def written(value: object, in_hex: bool = False) -> str:
    """A value as the file would have it."""
    if in_hex and isinstance(value, int):
        return f"{value:#010x}"
    if isinstance(value, Duration):
        return f'"{value}"'
    return msgspec.json.encode(value, enc_hook=str).decode()


def _fields(program: type[msgspec.Struct]) -> Iterator[tuple[str, msgspec.structs.FieldInfo]]:
    for field in msgspec.structs.fields(program):
        section = _section(field.type)
        if section is None:
            yield field.encode_name, field
        else:
            for inner in msgspec.structs.fields(section):
                yield f"{field.encode_name}.{inner.encode_name}", inner


def _build(program: type[S], values: Mapping[str, Any]) -> S:
    arguments: dict[str, Any] = {}
    for field in msgspec.structs.fields(program):
        section = _section(field.type)
        if section is None:
            arguments[field.name] = values[field.encode_name]
        else:
            inner = msgspec.structs.fields(section)
            arguments[field.name] = section(**{f.name: values[f"{field.encode_name}.{f.encode_name}"] for f in inner})
    return program(**arguments)


def _read(file: Path, must_exist: bool, faults: list[str]) -> Iterator[tuple[int, str, object]]:
    try:
        text = file.read_text()
        data = tomllib.loads(text)
    except FileNotFoundError:
        if must_exist:
            faults.append(f"{file}: there is no such file")
        return
    except OSError as e:
        faults.append(f"{file}: cannot be read: {e.strerror}")
        return
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        faults.append(f"{file}: is no TOML: {e}")
        return
    lines = _lines(text)
    for key, value in data.items():
        if isinstance(value, dict):
            for inner, raw in value.items():
                yield lines.get(f"{key}.{inner}", lines.get(key, 0)), f"{key}.{inner}", raw
        else:
            yield lines.get(key, 0), key, value


def _lines(text: str) -> dict[str, int]:
    """Where each key stands. tomllib does not tell; this finds what is written one key a line, as settings are."""
    found: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([\w.\"'-]+)\s*\]", line):
            section = header[1].strip("\"'") + "."
            found.setdefault(section[:-1], number)
        elif pair := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            found.setdefault(section + pair[1].strip("\"'"), number)
    return found


def _unknown(key: str, known: Mapping[str, Setting]) -> str:
    section, dot, name = key.rpartition(".")
    siblings = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section]
    if dot and not siblings:
        sections = {k.partition(".")[0] for k in known if "." in k}
        return f"[{section}] is no section{did_you_mean(section, sections)}"
    return f"{key} is no setting{did_you_mean(name, siblings)}"


def _section(annotation: Any) -> type[msgspec.Struct] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, msgspec.Struct) else None


def _attribute(struct: type[msgspec.Struct], encoded: str) -> str:
    return struct.__struct_fields__[struct.__struct_encode_fields__.index(encoded)]


def _default(field: msgspec.structs.FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    return field.default


def _doc(annotation: Any) -> str:
    metas = typing.get_args(annotation)[1:] if typing.get_origin(annotation) is Annotated else ()
    return next((m.description for m in metas if isinstance(m, msgspec.Meta) and m.description), "")


def _is_list(annotation: Any) -> bool:
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    return typing.get_origin(annotation) in (list, tuple, set, frozenset)


def _decode(wanted: type, value: object) -> object:
    if wanted is Duration:
        return Duration.read(value)
    if wanted is Path and isinstance(value, str | Path):
        return Path(value)
    raise ValueError(f"expected {wanted.__name__}")


def _number(text: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise ValueError("expected a number, as in 0x2a or 42") from None


def _shown(raw: object) -> str:
    return msgspec.json.encode(raw, enc_hook=str).decode()


def _cause(e: Exception) -> str:
    # A ValueError out of the hook reaches us wrapped by msgspec, with a path that says nothing for a single value.
    return str(e).removesuffix(" - at `$`")
