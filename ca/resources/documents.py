"""YAML files -> objects, and back. A file is taken whole or refused whole, with every fault in it.

Each value still knows its line: the walk below follows the msgspec structs field by field over PyYAML's nodes
instead of converting at once, because msgspec stops at the first fault.
"""

import enum
import functools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import yaml

from ca.hints import did_you_mean
from ca.resources import yaml12
from ca.resources.kinds import KINDS, Resource
from ca.resources.metadata import Key

_BAD = object()
"""Stands for a value whose faults are already recorded."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where, on which object and field, why, and what would be right."""

    file: str
    line: int
    title: str
    path: str
    cause: str

    def __str__(self) -> str:
        return ": ".join(p for p in (f"{self.file}:{self.line}", self.title, self.path, self.cause) if p)


class DocumentError(Exception):
    """The files were refused; `faults` holds every fault, in the order of the files."""

    def __init__(self, faults: list[Fault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Placed:
    """An object and where it was written; `lines` has the line of each of its fields by path."""

    resource: Resource
    file: str
    line: int
    lines: Mapping[str, int]

    def place(self, complaint: str) -> str:
        """`complaint` of the object, as others have it (`KIND NAME: [FIELD: ]CAUSE`), with file and line before it."""
        path = complaint.removeprefix(f"{self.resource.key}: ").partition(":")[0]
        return f"{self.file}:{self.lines.get(path, self.line)}: {complaint}"


def read(sources: Iterable[tuple[str, str]], given: Mapping[str, object] = {}) -> list[Placed]:
    """The objects in all sources, each (name of the file, its text). `given` has values, by path, of required fields
    that may be left out. Raises DocumentError."""
    faults: list[Fault] = []
    found: dict[Key, Placed] = {}
    for file, text in sources:
        here: list[Fault] = []
        empty = True
        for placed in _read_one(file, text, here, given):
            empty = False
            key = placed.resource.key
            if (first := found.get(key)) is not None:
                cause = f"stands a second time; the first is at {first.file}:{first.line}"
                here.append(Fault(file, placed.line, str(key), "", cause))
            found.setdefault(key, placed)
        if empty and not here:
            here.append(Fault(file, 1, "", "", "holds no object"))
        faults += sorted(here, key=lambda f: f.line)
    if faults:
        raise DocumentError(faults)
    return list(found.values())


def to_yaml(resources: Iterable[Resource]) -> str:
    """The objects as a YAML stream, one document each; `read` gives them back equal."""
    return yaml12.dump_all(msgspec.to_builtins(r) for r in resources)


def to_json(resources: Iterable[Resource]) -> str:
    """The objects as one JSON array."""
    return msgspec.json.format(msgspec.json.encode(list(resources)), indent=2).decode()


def _read_one(file: str, text: str, faults: list[Fault], given: Mapping[str, object]) -> Iterator[Placed]:
    try:
        nodes = list(yaml12.compose_all(text))
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark or e.context_mark
        cause = "; ".join(p for p in (e.context, e.problem, e.note) if p)
        faults.append(Fault(file, mark.line + 1 if mark else 1, "", "", f"is no YAML: {cause}"))
        return
    except (yaml.YAMLError, RecursionError) as e:
        faults.append(Fault(file, 1, "", "", f"is no YAML: {' '.join(str(e).split())}"))
        return
    for node in _objects(nodes):
        if isinstance(node, yaml.ScalarNode) and node.tag == yaml12.NULL:
            continue
        walk = _Walk(file, faults, given)
        resource = walk.document(node)
        if resource is not _BAD:
            yield Placed(resource, file, _line(node), walk.lines)


def _objects(documents: Iterable[yaml.Node]) -> Iterator[yaml.Node]:
    """The objects of each document, which is one of them or a list of them (what `to_json` prints)."""
    for document in documents:
        if isinstance(document, yaml.SequenceNode):
            yield from document.value
        else:
            yield document


class _Walk:
    """One document, followed along its struct."""

    def __init__(self, file: str, faults: list[Fault], given: Mapping[str, object]) -> None:
        self._file = file
        self._faults = faults
        self._given = given
        self._title = ""
        self.lines: dict[str, int] = {}

    def document(self, node: yaml.Node) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self._fault(
                node, "", f"an object is a mapping with kind, metadata and spec, not {yaml12.name(node)}"
            )
        entries = {k.value: v for k, v in node.value if isinstance(k, yaml.ScalarNode)}
        kind = entries.get("kind")
        if not isinstance(kind, yaml.ScalarNode):
            return self._fault(node, "kind", f"is missing; known: {', '.join(sorted(KINDS))}")
        self._title = _title(kind.value, entries.get("metadata"))
        if kind.value not in KINDS:
            return self._fault(kind, "kind", f"{kind.value!r} is no kind{did_you_mean(kind.value, KINDS)}")
        return self._struct(node, KINDS[kind.value], "", skip="kind")

    def _fault(self, node: yaml.Node, path: str, cause: str) -> Any:
        self._faults.append(Fault(self._file, _line(node), self._title, path, cause))
        return _BAD

    def _value(self, node: yaml.Node, wanted: Any, path: str) -> Any:
        inner, optional = _unwrap(wanted)
        if optional and isinstance(node, yaml.ScalarNode) and node.tag == yaml12.NULL:
            return None
        origin, arguments = typing.get_origin(inner), typing.get_args(inner)
        if isinstance(inner, type) and issubclass(inner, msgspec.Struct):
            if not isinstance(node, yaml.MappingNode):
                return self._fault(node, path, f"expected a mapping, got {yaml12.name(node)}")
            return self._struct(node, inner, path)
        if origin in (list, tuple):
            return self._sequence(node, origin, arguments[0], path)
        if origin is dict:
            return self._mapping(node, arguments[1], path)
        return self._scalar(node, wanted, path)

    def _struct(self, node: yaml.MappingNode, wanted: type[msgspec.Struct], path: str, skip: str = "") -> Any:
        fields = {f.encode_name: f for f in _fields(wanted)}
        values: dict[str, Any] = {}
        nodes: dict[str, yaml.Node] = {}
        good = True
        for name, key, value in self._entries(node, path):
            good = good and name is not None
            if name is None or name == skip:
                continue
            if name not in fields:
                good = False
                self._fault(key, _join(path, name), f"no such field{did_you_mean(name, fields)}")
                continue
            nodes[name] = value
            self.lines[_join(path, name)] = _line(key)
            values[fields[name].name] = self._value(value, fields[name].type, _join(path, name))
        for name, field in fields.items():
            if name not in nodes and _join(path, name) in self._given:
                values[field.name] = self._given[_join(path, name)]
            elif name not in nodes and field.required:
                good = False
                self._fault(node, _join(path, name), "is missing")
        bad = {f.name for f in fields.values() if values.get(f.name) is _BAD}
        return self._build(node, wanted, path, values, nodes, good and not bad)

    def _build(
        self,
        node: yaml.Node,
        wanted: type[msgspec.Struct],
        path: str,
        values: dict[str, Any],
        nodes: dict[str, yaml.Node],
        good: bool,
    ) -> Any:
        """Make the struct, or collect what its own checks say: they stop at the first fault, so each field that is
        found wrong is left out for the next try. What is already incomplete is only tried for further faults, with a
        stand-in for each text that is missing."""
        fields = {f.name: f for f in _fields(wanted)}
        values = {name: v for name, v in values.items() if v is not _BAD}
        written = set(values)
        if not good:
            values = {n: "x" for n, f in fields.items() if f.required and f.type is str} | values
        while all(name in values or not f.required for name, f in fields.items()):
            try:
                built = wanted(**values)
            except ValueError as e:
                subject = _subject(
                    str(e),
                    {
                        f.name: nodes[f.encode_name]
                        for f in fields.values()
                        if f.encode_name in nodes and f.name in written & set(values)
                    },
                )
                if subject:
                    encoded = fields[subject].encode_name
                    self._fault(nodes[encoded], _join(path, encoded), str(e))
                    del values[subject]
                elif good:
                    self._fault(node, path, str(e))
                good = False
                if not subject:
                    break
            else:
                return built if good else _BAD
        return _BAD

    def _entries(self, node: yaml.MappingNode, path: str) -> Iterator[tuple[str | None, yaml.Node, yaml.Node]]:
        lines: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._fault(key, path, f"a key is a word, not {yaml12.name(key)}")
                yield None, key, value
            elif key.value in lines:
                self._fault(
                    key, _join(path, key.value), f"stands a second time; the first is at line {lines[key.value]}"
                )
                yield None, key, value
            else:
                lines[key.value] = _line(key)
                yield key.value, key, value

    def _sequence(self, node: yaml.Node, kind: type, item: Any, path: str) -> Any:
        if not isinstance(node, yaml.SequenceNode):
            return self._fault(node, path, f"expected a list, got {yaml12.name(node)}")
        values = [self._value(n, item, f"{path}[{i}]") for i, n in enumerate(node.value)]
        return _BAD if _BAD in values else kind(values)

    def _mapping(self, node: yaml.Node, item: Any, path: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            return self._fault(node, path, f"expected a mapping, got {yaml12.name(node)}")
        values = {
            name: _BAD if name is None else self._value(v, item, _join(path, name))
            for name, _, v in self._entries(node, path)
        }
        return _BAD if _BAD in values.values() else values

    def _scalar(self, node: yaml.Node, wanted: Any, path: str) -> Any:
        raw = yaml12.scalar(node)
        if raw is yaml12.NO_SCALAR:
            return self._fault(node, path, f"expected {_expected(wanted)}, got {yaml12.name(node)}")
        try:
            return msgspec.convert(raw, wanted)
        except msgspec.ValidationError as e:
            return self._fault(node, path, _explain(str(e), node, raw, wanted))


@functools.cache
def _fields(wanted: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """They are put together anew at each call, which takes longer than all else here."""
    return msgspec.structs.fields(wanted)


def _explain(message: str, node: yaml.Node, raw: object, wanted: Any) -> str:
    inner, _ = _unwrap(wanted)
    written = node.value
    if isinstance(inner, type) and issubclass(inner, enum.Enum):
        names = [str(m.value) for m in inner]
        return f"{written!r} is no choice{did_you_mean(str(written), names)}"
    if typing.get_origin(inner) is typing.Literal:
        return f"{written!r} must be {' or '.join(map(str, typing.get_args(inner)))}"
    if _base(inner) is str and not isinstance(raw, str):
        return f"expected text, got {yaml12.name(node)}; " + (
            f'write "{written}"' if raw is not None else "give it a value"
        )
    if _base(inner) is int and isinstance(raw, str) and raw.isdigit():
        return f"expected a number, got text; write {raw} without quotes"
    bound = re.fullmatch(r"Expected `int` (>=|<=) (\d+)", message)
    if bound:
        return f"{written} must be {'at least' if bound[1] == '>=' else 'at most'} {bound[2]}"
    return f"expected {_expected(inner)}, got {yaml12.name(node)}"


def _subject(message: str, nodes: dict[str, yaml.Node]) -> str:
    """Which field a struct's own complaint is about: it begins with the field's name or the singular of it, or quotes
    the value; empty if it is about none."""
    word = re.match(r"[\w ]*", message)
    first = word[0].replace(" ", "_").lower() if word else ""
    for name in sorted(nodes, key=len, reverse=True):
        if first.startswith((name.lower(), name.removesuffix("s"))):
            return name
    return next((n for n, v in nodes.items() if isinstance(v, yaml.ScalarNode) and repr(v.value) in message), "")


def _unwrap(wanted: Any) -> tuple[Any, bool]:
    """The type without `| None`, and whether it had it."""
    if typing.get_origin(wanted) in (typing.Union, types.UnionType):
        rest = [a for a in typing.get_args(wanted) if a is not types.NoneType]
        if len(rest) == 1:
            return rest[0], True
    return wanted, False


def _base(wanted: Any) -> Any:
    return typing.get_args(wanted)[0] if typing.get_origin(wanted) is Annotated else wanted


def _expected(wanted: Any) -> str:
    return {str: "text", int: "a number", bool: "true or false", float: "a number"}.get(
        _base(_unwrap(wanted)[0]), "a value"
    )


def _title(kind: str, metadata: yaml.Node | None) -> str:
    if not isinstance(metadata, yaml.MappingNode):
        return kind.lower()
    names = {k.value: v.value for k, v in metadata.value if isinstance(v, yaml.ScalarNode)}
    where = "/".join(p for p in (names.get("namespace"), names.get("name")) if p)
    return f"{kind.lower()} {where}".rstrip()


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
