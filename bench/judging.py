"""Samples -> medians, spread and ratios. Pure.

Disturbed samples are left out where undisturbed ones exist; otherwise the calmest stands in. A ratio is taken within
each turn, between measurements seconds apart, and the median of those is what counts: the machine's speed drifts by
more than the peers differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from bench.samples import Sample

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Figure:
    """A median, over `count` values that spread from `low` to `high`."""

    median: float
    low: float
    high: float
    count: int

    @property
    def spread(self) -> float:
        """(high - low) / median."""
        return (self.high - self.low) / self.median if self.median else 0.0


class Results:
    """The sound samples of a run, to be asked for figures."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples: dict[tuple[str, int, str], list[Sample]] = {}
        self._unsound: list[Sample] = []
        for sample in samples:
            if sample.sound:
                self._samples.setdefault((sample.peer, sample.workers, sample.measure), []).append(sample)
            else:
                self._unsound.append(sample)

    @property
    def unsound(self) -> Sequence[Sample]:
        """What failed or had a wrong answer; none of it is in any figure."""
        return self._unsound

    def figure(self, peer: str, workers: int, measure: str, value: str) -> Figure | None:
        """One number of one peer; None when it was not measured."""
        samples = [s for s in self._samples.get((peer, workers, measure), ()) if value in s.values]
        return _figure([s.values[value] for s in _calm(samples, [s.noise.level for s in samples])])

    def ratio(self, peer: str, base: str, workers: int, measure: str, value: str) -> Figure | None:
        """`peer` / `base`, turn by turn."""
        pairs = [
            (mine.values[value], theirs.values[value], max(mine.noise.level, theirs.noise.level))
            for mine, theirs in self._pairs(peer, base, workers, measure)
            if value in mine.values and theirs.values.get(value)
        ]
        return _figure([mine / theirs for mine, theirs, _ in _calm(pairs, [level for *_, level in pairs])])

    def added(self, peer: str, base: str, workers: int, measure: str, value: str) -> Figure | None:
        """`peer` - `base`, turn by turn."""
        pairs = [
            (mine.values[value] - theirs.values[value], max(mine.noise.level, theirs.noise.level))
            for mine, theirs in self._pairs(peer, base, workers, measure)
            if value in mine.values and value in theirs.values
        ]
        return _figure([difference for difference, _ in _calm(pairs, [level for _, level in pairs])])

    def _pairs(self, peer: str, base: str, workers: int, measure: str) -> list[tuple[Sample, Sample]]:
        theirs = {s.turn: s for s in self._samples.get((base, workers, measure), ())}
        mine = self._samples.get((peer, workers, measure), ())
        return [(s, theirs[s.turn]) for s in mine if s.turn in theirs]


def _figure(values: Sequence[float]) -> Figure | None:
    return Figure(median(values), min(values), max(values), len(values)) if values else None


def _calm(items: Sequence[_T], levels: Sequence[float]) -> Sequence[_T]:
    calm = [item for item, level in zip(items, levels, strict=True) if level <= 1.0]
    if calm or not items:
        return calm
    return [min(zip(levels, range(len(items)), items, strict=True))[2]]
