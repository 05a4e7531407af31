"""Names, labels, keys and selectors: what every object shares."""

import re
from typing import Final, NamedTuple

import msgspec

from ca.identity import check_name

API_VERSION: Final = "culvert/v1"
"""Stands in every stored record and, if given, in every file."""

_LABEL_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?")


class Key(NamedTuple):
    """Names one object. `namespace` is empty for kinds that belong to the whole mesh."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        where = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind.lower()} {where}"


def check_labels(labels: dict[str, str]) -> None:
    """Raise ValueError for a label that could not be written in a selector."""
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise ValueError(
                f"label key {key!r}: use letters, digits, '-', '_' and '.', at most 63, as in app or team/app"
            )
        if not _LABEL_VALUE.fullmatch(value):
            raise ValueError(f"label {key}={value!r}: the value may hold letters, digits, '-', '_' and '.', at most 63")


class Metadata(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who an object is."""

    name: str
    namespace: str = ""
    labels: dict[str, str] = {}

    def __post_init__(self) -> None:
        check_name(self.name, "name")
        if self.namespace:
            check_name(self.namespace, "namespace")
        check_labels(self.labels)


class Selector(msgspec.Struct, frozen=True, rename="camel"):
    """Matches an object that carries every one of these labels; an empty selector matches nothing."""

    match_labels: dict[str, str] = {}

    def __post_init__(self) -> None:
        check_labels(self.match_labels)

    def matches(self, labels: dict[str, str]) -> bool:
        """Whether `labels` hold every label of the selector."""
        return bool(self.match_labels) and self.match_labels.items() <= labels.items()
