"""What the kernel lists -> the values of `ruleset`. Pure: bytes in, values out.

A decoder of our own: pyroute2's reads socket and fib expressions wrongly. What no plan of ours makes becomes Unknown,
which equals nothing, so that a comparison shows it.
"""

import sys
from collections.abc import Iterable

from redirect.encode import FIRST_REGISTER, HEADERS, VERDICT_TYPE
from redirect.frames import attributes
from redirect.ruleset import (
    CT_LABEL,
    ORIGINAL,
    PLAIN_FIELDS,
    REPLY,
    Base,
    Count,
    Dispatch,
    Field,
    Group,
    Key,
    Match,
    Member,
    PutLabel,
    PutMark,
    Redirect,
    Reset,
    Rule,
    Set,
    Statement,
    Unknown,
    Verdict,
    VerdictMap,
    cgroup,
)

_FIELDS = {(f.kind, f.number): f for f in PLAIN_FIELDS}
_KEYS = {(key.number, key.ranges, key.passing): key for key in Key}
_INTERVAL, _MAP, _TIMEOUT = 4, 8, 16
"""NFT_SET_INTERVAL, NFT_SET_MAP and NFT_SET_TIMEOUT, flags of sets."""
_REDIRECT_FLAGS = (None, 2)
"""The kernel adds NF_NAT_RANGE_PROTO_SPECIFIED."""


def decode_base(chain: dict[int, bytes]) -> Base | None:
    """From the attributes of a chain."""
    if 4 not in chain:
        return None
    hook = dict(attributes(chain[4]))
    return Base(_text(chain.get(7, b"")), _number(hook.get(1)), _signed(hook.get(2)), _number(chain.get(5)) == 1)


def decode_group(group: dict[int, bytes], elements: Iterable[bytes]) -> Group:
    """From the attributes of a set or map, and the payloads of its elements."""
    name, flags = _text(group[2]), _number(group.get(3))
    key = _KEYS.get((_number(group.get(4)), bool(flags & _INTERVAL), bool(flags & _TIMEOUT)))
    if key is not None and key.width != _number(group.get(5)):
        key = None
    # Every other flag (data, ranges in maps, ...) makes it a set that no plan of ours has.
    if flags not in (0, _INTERVAL, _MAP, _TIMEOUT) or (flags & _MAP and _number(group.get(6)) != VERDICT_TYPE):
        key = None
    rows = [dict(attributes(e)) for e in elements]
    if flags & _MAP:
        return VerdictMap(name, key, frozenset((_data(row[1]), decode_verdict(row.get(2, b""))) for row in rows))
    values = ((_data(row[1]), bool(_number(row.get(3)) & 1)) for row in rows)
    if key is not None and key.ranges:
        return Set(name, key, _ranges(values, key.width))
    left = max((_number(row.get(5)) / 1000 for row in rows), default=0.0) if flags & _TIMEOUT else None
    return Set(name, key, frozenset(value for value, _ in values), left)


def _ranges(values: Iterable[tuple[bytes, bool]], width: int) -> frozenset[bytes]:
    """The ranges between first values and the marks of ends, each of which is the value behind the last. A mark that
    ends nothing stands where nft itself put one before the first range; a range without a mark goes on to the end."""
    found = set[bytes]()
    first: bytes | None = None
    # Where one range ends and the next begins, the mark comes first.
    for value, end in sorted(values, key=lambda v: (v[0], not v[1])):
        if first is not None:
            found.add(first + (int.from_bytes(value) - 1).to_bytes(width))
        first = None if end else value
    if first is not None:
        found.add(first + b"\xff" * width)
    return frozenset(found)


def _data(data: bytes) -> bytes:
    return dict(attributes(data)).get(1, b"")


def decode_verdict(data: bytes) -> Verdict:
    """From NFTA_DATA_VERDICT."""
    verdict = dict(attributes(dict(attributes(data)).get(2, b"")))
    return Verdict(_signed(verdict.get(1)), _text(verdict.get(2, b"")))


def decode_rule(rule: dict[int, bytes]) -> Rule:
    """From the attributes of a rule."""
    reader = _Reader()
    for _, expression in attributes(rule.get(4, b"")):
        parts = dict(attributes(expression))
        reader.take(_text(parts.get(1, b"")), dict(attributes(parts.get(2, b""))))
    return Rule(reader.statements(), _comment(rule.get(7, b"")))


def _comment(data: bytes) -> str:
    """User data: rows of type, length, value; type 0 of a rule is its comment."""
    while len(data) >= 2:
        kind, size = data[0], data[1]
        if kind == 0:
            return _text(data[2 : 2 + size])
        data = data[2 + size :]
    return ""


class _Reader:
    """Puts expressions, which speak through registers, together into statements."""

    def __init__(self) -> None:
        self._done: list[Statement] = []
        # What was loaded since the last statement, by the register's place in units of four bytes.
        self._loaded: dict[int, Field] = {}
        self._mask: tuple[bytes, bytes] | None = None
        self._constant: bytes | None = None

    def statements(self) -> tuple[Statement, ...]:
        if self._loaded or self._mask or self._constant is not None:
            self._done.append(Unknown("a value that is not used"))
        return tuple(self._done)

    def take(self, name: str, data: dict[int, bytes]) -> None:
        statement = self._read(name, data)
        if statement is not None:
            self._done.append(statement)
            self._loaded, self._mask, self._constant = {}, None, None

    def _read(self, name: str, data: dict[int, bytes]) -> Statement | None:
        """A statement, or None for an expression that prepares one."""
        match name:
            case "meta" | "ct" if self._constant is not None:
                return self._put(name, data)
            case "meta" | "ct" | "fib" | "socket" | "payload":
                return self._load(name, data)
            case "bitwise" if len(self._loaded) == 1 and self._mask is None and _number(data.get(6)) == 0:
                self._mask = _data(data.get(4, b"")), _data(data.get(5, b""))
                return None
            case "cmp":
                return self._match(data)
            case "lookup":
                return self._lookup(data)
            case "immediate" if not self._loaded:
                return self._immediate(data)
            case "counter":
                return Count(packets=_number(data.get(2)), bytes=_number(data.get(1)))
            case "redir" if self._constant is not None and (_number(data[3]) if 3 in data else None) in _REDIRECT_FLAGS:
                return Redirect(int.from_bytes(self._constant[:2], "big"))
            case "reject" if _number(data.get(1)) == 1:
                return Reset()
        return Unknown(name)

    def _load(self, name: str, data: dict[int, bytes]) -> Statement | None:
        field: Field | None
        match name:
            case "meta":
                field, register = _FIELDS.get((name, _number(data.get(2)))), data.get(1)
            case "ct":
                directions = {None: "ct", ORIGINAL: "ct original", REPLY: "ct reply"}
                kind = directions.get(_number(data[3]) if 3 in data else None, "")
                field, register = _FIELDS.get((kind, _number(data.get(2)))), data.get(1)
            case "fib":
                field, register = _FIELDS.get((name, _number(data.get(2)))), data.get(1)
                if _number(data.get(3)) != 2:
                    field = None
            case "socket":
                number, register = _number(data.get(1)), data.get(2)
                field = cgroup(_number(data.get(3))) if number == 3 else _FIELDS.get((name, number))
            case _:
                header = dict(enumerate(HEADERS)).get(_number(data.get(2)), "")
                field, register = _FIELDS.get((header, _number(data.get(3)))), data.get(1)
                if field is not None and field.width != _number(data.get(4)):
                    field = None
        if field is None or register is None:
            return Unknown(name)
        self._loaded[_place(_number(register))] = field
        return None

    def _match(self, data: dict[int, bytes]) -> Statement:
        operation, value = _number(data.get(2)), _data(data.get(3, b""))
        field = self._loaded.get(0)
        if len(self._loaded) != 1 or field is None or operation not in (0, 1) or len(value) != field.width:
            return Unknown("cmp")
        mask = None
        if self._mask is not None:
            bits, flipped = self._mask
            if any(flipped):
                return Unknown("bitwise")
            mask = field.unpack(bits)
        return Match(field, field.unpack(value), mask, operation == 0)

    def _lookup(self, data: dict[int, bytes]) -> Statement:
        name, fields = _text(data.get(1, b"")), tuple(self._loaded[place] for place in sorted(self._loaded))
        places, expected = sorted(self._loaded), 0
        for place, field in zip(places, fields, strict=True):
            if place != expected:
                return Unknown("lookup")
            expected += -(-field.width // 4)
        if not fields or self._mask is not None or _place(_number(data.get(2))) != 0:
            return Unknown("lookup")
        if 3 not in data:
            return Member(fields, name, inside=not _number(data.get(5)) & 1)
        if len(fields) == 1 and _number(data[3]) == 0:
            return Dispatch(fields[0], name)
        return Unknown("lookup")

    def _immediate(self, data: dict[int, bytes]) -> Statement | None:
        if _number(data.get(1)) == 0:
            return decode_verdict(data.get(2, b""))
        self._constant = _data(data.get(2, b""))
        return None

    def _put(self, name: str, data: dict[int, bytes]) -> Statement:
        key, source = _number(data.get(2)), data.get(3 if name == "meta" else 4)
        if source is None or self._constant is None:
            return Unknown(name)
        if name == "ct" and key == CT_LABEL.number:
            bits = int.from_bytes(self._constant, sys.byteorder)
            return PutLabel(bits.bit_length() - 1) if bits.bit_count() == 1 else Unknown(name)
        if key != 3:
            return Unknown(name)
        return PutMark(int.from_bytes(self._constant[:4], sys.byteorder), connection=name == "ct")


def _place(register: int) -> int:
    """Registers 1 to 4 are the older names of groups of four from FIRST_REGISTER on."""
    return (register - 1) * 4 if register < FIRST_REGISTER else register - FIRST_REGISTER


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode(errors="replace")


def _number(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "big")


def _signed(data: bytes | None) -> int:
    return int.from_bytes(data or b"", "big", signed=True)
