"""YAML as we read and write it: PyYAML's nodes with the scalars of YAML 1.2.

Only true and false are booleans, so that the label `mesh: on` is the text "on"; there are no dates and no merge keys.
Aliases are refused: a value that stands nowhere in the file has no line to point to, and a few of them can unfold into
gigabytes. What we write is quoted wherever a reader of YAML 1.1 or 1.2 would take it for something else than text.

libyaml composes several times as fast as PyYAML itself, so it has the first try; what it refuses, or must not be given,
PyYAML composes again, and the words of its errors are what people see.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

NULL = "tag:yaml.org,2002:null"
_BOOL, _INT, _FLOAT = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_STR = "tag:yaml.org,2002:str"

NO_SCALAR = object()
"""What `scalar` says of anything else."""

_SCALARS = (
    (_BOOL, r"true|True|TRUE|false|False|FALSE", "tTfF"),
    (NULL, r"~|null|Null|NULL|", ("~", "n", "N", "")),
    (_INT, r"[-+]?[0-9]{1,40}|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (_FLOAT, r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+0123456789."),
)

_NAMES = {_BOOL: "true or false", NULL: "nothing", _INT: "a number", _FLOAT: "a number", _STR: "text"}


class _Composer(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            parser: Any = self
            event = parser.get_event()
            raise yaml.composer.ComposerError(
                None, None, f"*{event.anchor} is an alias; write the value out", event.start_mark
            )
        return super().compose_node(parent, index)


DEEP = 200
"""Levels of nesting that libyaml is trusted with: it recurses on the C stack, where too many end the process."""


_ODD = re.compile("[\t\x85\u2028\u2029\ufeff?]")
"""What the two read differently: rare white space, and `?` keys."""


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


_Composer.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in _SCALARS:
    _whole = re.compile(rf"(?:{_pattern})\Z")
    _Composer.add_implicit_resolver(_tag, _whole, list(_first))
    _Dumper.add_implicit_resolver(_tag, _whole, list(_first))


try:

    class _Quick(yaml.CSafeLoader):
        yaml_implicit_resolvers = _Composer.yaml_implicit_resolvers

except AttributeError:  # PyYAML was built without libyaml
    _Quick = None  # type: ignore[assignment,misc]


def compose_all(text: str) -> Iterator[yaml.Node]:
    """The documents of a stream as nodes with their lines; yaml.YAMLError if it is none."""
    quick = quickly(text)
    return yaml.compose_all(text, Loader=_Composer) if quick is None else iter(quick)


def quickly(text: str) -> list[yaml.Node] | None:
    """What `compose_all` gives, from libyaml; None where that could be something else, or is an error."""
    if _Quick is None or _ODD.search(text) or _may_be_deep(text):
        return None
    try:
        found = list(yaml.compose_all(text, Loader=_Quick))
    except yaml.YAMLError:
        return None
    return None if "*" in text and _repeats(found) else found


def _may_be_deep(text: str) -> bool:
    """Whether more than DEEP levels are possible: by brackets, each of which takes a character, or by indentation, each
    level of which takes a column."""
    if re.search(rf"^[ \t?:-]{{{DEEP}}}", text, re.MULTILINE):
        return True
    return any(d.count("[") + d.count("{") > DEEP for d in re.split(r"^---", text, flags=re.MULTILINE))


def _repeats(found: list[yaml.Node]) -> bool:
    """Whether a node stands in two places, as an alias makes it."""
    seen: set[int] = set()
    rest = list(found)
    while rest:
        node = rest.pop()
        if id(node) in seen:
            return True
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            rest += [n for pair in node.value for n in pair]
        elif isinstance(node, yaml.SequenceNode):
            rest += node.value
    return False


def dump_all(documents: Iterable[object]) -> str:
    """Built-in values as a stream."""
    return yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=False)


def scalar(node: yaml.Node) -> object:
    """The value of a scalar; NO_SCALAR for a mapping, a list or a tag we do not read."""
    if not isinstance(node, yaml.ScalarNode):
        return NO_SCALAR
    text = node.value
    if node.tag == _INT:
        return int(text, 0 if text[:2] in ("0o", "0x") else 10)
    if node.tag == _FLOAT:
        return float(text)
    return {_BOOL: text.lower() == "true", NULL: None, _STR: text}.get(node.tag, NO_SCALAR)


def name(node: yaml.Node) -> str:
    """What somebody who wrote this node would call it."""
    if isinstance(node, yaml.MappingNode):
        return "a mapping"
    if isinstance(node, yaml.SequenceNode):
        return "a list"
    return _NAMES.get(node.tag, f"the tag {node.tag}")
