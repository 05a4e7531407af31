"""Preconditions of a node: what must hold for capture to work here, checked one by one.

A **finding** is the outcome of one check. `rights`, `kernel`, `room`, `others` and `clocks` judge facts and are pure;
`look` gets the facts and asks them all.
"""

from typing import Literal

import msgspec

State = Literal["ok", "warn", "fail", "unknown"]
"""warn: works, but not for long or not for everybody. unknown: it could not be asked from here."""


class Finding(msgspec.Struct, frozen=True):
    """How one precondition stands: `text` says what is so, `remedy` what to do where it should not be."""

    name: str
    state: State
    text: str
    remedy: str = ""


class CheckAnswer(msgspec.Struct, frozen=True):
    """All findings of one node."""

    findings: list[Finding]
