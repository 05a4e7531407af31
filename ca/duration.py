"""A length of time as people write it: 90s, 10m, 24h, 30d."""

import re

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")


class Duration(float):
    """Seconds; zero or more. Written with a unit (`10m`), or as a bare number of seconds."""

    @classmethod
    def read(cls, value: object) -> "Duration":
        """From a number or a text; ValueError says what would be right."""
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
            return cls(value)
        match = _TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise ValueError(f"{value!r} is no length of time; write it as in 90s, 10m, 24h or 30d")
        return cls(float(match[1]) * _UNITS[match[2] or "s"])

    def __str__(self) -> str:
        for unit in ("d", "h", "m", "s", "ms"):
            whole = self / _UNITS[unit]
            if self and whole >= 1 and whole == int(whole):
                return f"{int(whole)}{unit}"
        return f"{float(self):g}s"
