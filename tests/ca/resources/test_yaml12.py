"""libyaml, which is quick, must say what PyYAML says, and never be given what ends the process."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ca.resources import yaml12

Plain = tuple[str, object, int]


def _plain(node: yaml.Node) -> Plain:
    line = node.start_mark.line
    if isinstance(node, yaml.MappingNode):
        return node.tag, [(_plain(k), _plain(v)) for k, v in node.value], line
    if isinstance(node, yaml.SequenceNode):
        return node.tag, [_plain(n) for n in node.value], line
    return node.tag, node.value, line if node.value else 0  # nothing has no certain line


def _slowly(text: str) -> list[Plain] | None:
    try:
        return [_plain(n) for n in yaml.compose_all(text, Loader=yaml12._Composer)]
    except (yaml.YAMLError, RecursionError):
        return None


PIECES = st.sampled_from(
    ["a", "kind", "on", "true", "~", "null", "012", "0x1f", "1e3", "1.5", "-", "- ", "? ", ": ", ":", ", ", "[", "]",
     "{", "}", '"', "'", "x y", "#c", " #c", "\n", "\n", "\n  ", "\n    ", "\n- ", "---\n", "...\n", "|\n", ">-\n",
     "&a ", "*a", "!!str ", "!x ", "<<", "é", "\t", "%YAML 1.2\n", "\\n", "@", "`", "\ufeff", "\x85"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=30).map("".join))
def test_what_is_quick_is_the_same(text: str) -> None:
    found = yaml12.quickly(text)
    if found is not None:
        assert [_plain(n) for n in found] == _slowly(text)


@given(st.text(max_size=60))
def test_whatever_the_text(text: str) -> None:
    found = yaml12.quickly(text)
    if found is not None:
        assert [_plain(n) for n in found] == _slowly(text)


@pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML is without libyaml: install a wheel of it")
def test_ordinary_objects_take_the_quick_way() -> None:
    text = "kind: Node\nmetadata: {name: a, labels: {x: '*'}}\n---\n" * 1000
    found = yaml12.quickly(text)
    assert found is not None
    assert len(found) == 1001


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "{a: " * 100_000, "- " * 100_000, "? " * 100_000, "\n".join(" " * i + "a:" for i in range(5000)),
     "a: &x 1\nb: *x\n", "a: [1"],
    ids=["lists", "mappings", "dashes", "questions", "indented", "alias", "error"],
)  # fmt: skip
def test_what_is_not_for_libyaml(text: str) -> None:
    assert yaml12.quickly(text) is None
