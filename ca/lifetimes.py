"""When what signs must be replaced, and when somebody should be told that something is about to end. Pure.

Everything is judged by the share of its own life that is left, so that the same rules fit a leaf of an hour and a root
of ten years. The issuing certificate renews itself at half its life, a leaf too: one that has less than a quarter left
was not renewed although it should have been. A root does not renew itself and gets its word a tenth before the end.
"""

import enum
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

RENEW_AT = 1 / 2

NAMED = 10
"""Findings of one kind that are told one by one; of more there is a number."""


class Standing(enum.Enum):
    """`late`: it should have been renewed by now. `ended`: nobody accepts it any more."""

    GOOD = "good"
    LATE = "late"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The share of a life below which its end is near: for what renews itself, and for a root, which does not."""

    renewed: float = 0.25
    root: float = 0.1


USUAL = Thresholds()


@dataclass(frozen=True, slots=True)
class Lifetime:
    """Of a certificate that somebody wants: what nobody wants may end in silence. `what` is root, issuing, node or
    workload; `title` tells it from others of its kind. `life` is how long it was good for in all."""

    what: str
    title: str
    ends: datetime
    life: timedelta

    def left(self, now: datetime) -> timedelta:
        """What remains of it; negative after its end."""
        return self.ends - now

    def standing(self, now: datetime, thresholds: Thresholds) -> Standing:
        """How it is at `now`."""
        left = self.left(now)
        if left <= timedelta(0):
            return Standing.ENDED
        share = thresholds.root if self.what == "root" else thresholds.renewed
        return Standing.LATE if left < self.life * share else Standing.GOOD


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that an operator must know. `text` names the thing, the time and the next step; `key` is the same as
    long as it is the same trouble, whatever the text says of it meanwhile."""

    what: str
    title: str
    standing: Standing
    ends: datetime
    text: str

    @property
    def key(self) -> str:
        return f"{self.what} {self.title} {self.standing.value}"


@dataclass(frozen=True, slots=True)
class Overview:
    """All certificates at one moment. `first` has the one that ends first of each kind, `counts` how many there are by
    (what, standing), `signing` the roots and issuing certificates."""

    time: datetime
    signing: tuple[Lifetime, ...] = ()
    first: Mapping[str, Lifetime] = field(default_factory=dict)
    counts: Counter[tuple[str, Standing]] = field(default_factory=Counter)
    findings: tuple[Finding, ...] = ()


def renewal_time(begins: datetime, ends: datetime, root_ends: datetime) -> datetime | None:
    """When an issuing certificate is to be replaced. None when the root ends with it: a successor would live no longer,
    and have one itself half of that time later, without end."""
    return begins + (ends - begins) * RENEW_AT if root_ends > ends else None


def findings(all_: Iterable[Lifetime], now: datetime, thresholds: Thresholds = USUAL) -> list[Finding]:
    """What is late or has ended, the nearest end first. Of more than NAMED of one kind there is
    one finding, which names the first."""
    found = sorted((it for it in all_ if it.standing(now, thresholds) is not Standing.GOOD), key=_end)
    kinds = Counter((it.what, it.standing(now, thresholds)) for it in found)
    told: list[Finding] = []
    grouped: set[tuple[str, Standing]] = set()
    for it in found:
        kind = (it.what, it.standing(now, thresholds))
        if kinds[kind] <= NAMED:
            told.append(Finding(it.what, it.title, kind[1], it.ends, f"{_said(it, now)}: {_STEPS[it.what]}"))
        elif kind not in grouped:
            grouped.add(kind)
            many = f"{kinds[kind]} {_MANY[it.what]} {_VERBS[kind[1]]}, the first: {_said(it, now)}: {_STEPS[it.what]}"
            told.append(Finding(it.what, "many", kind[1], it.ends, many))
    return told


def overview(all_: Iterable[Lifetime], now: datetime, thresholds: Thresholds = USUAL) -> Overview:
    """Everything put together."""
    held = list(all_)
    first: dict[str, Lifetime] = {}
    counts: Counter[tuple[str, Standing]] = Counter()
    for it in held:
        counts[it.what, it.standing(now, thresholds)] += 1
        if it.what not in first or it.ends < first[it.what].ends:
            first[it.what] = it
    signing = tuple(it for it in held if it.what in ("root", "issuing"))
    return Overview(now, signing, first, counts, tuple(findings(held, now, thresholds)))


def _end(it: Lifetime) -> datetime:
    return it.ends


def _said(it: Lifetime, now: datetime) -> str:
    when = f"{'ended' if it.left(now) <= timedelta(0) else 'ends'} at {it.ends.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return f"{_NAMES[it.what]} {it.title} {when}"


_NAMES = {"root": "root", "issuing": "issuing certificate", "node": "certificate of node", "workload": "certificate of"}
_MANY = {
    "root": "roots",
    "issuing": "issuing certificates",
    "node": "certificates of nodes",
    "workload": "certificates of workloads",
}
_VERBS = {Standing.LATE: "end soon", Standing.ENDED: "have ended"}
_STEPS = {
    "root": "nothing in the mesh is trusted after that; plan a new root now",
    "issuing": "it should have been replaced by itself; see the centre's log for what is in the way, most likely the "
    "root's key is not in keys/",
    "node": "it was not renewed; is its agent running, and in reach of the centre?",
    "workload": "it was not renewed; see culvert certificates on its node",
}
