"""What came out of a run, as values that survive in a file."""

import msgspec


class Noise(msgspec.Struct, frozen=True):
    """What disturbed a measurement. `steal` is the share of the machine's time that its host took away, `other` the
    CPU, in cores, used by nobody in the benchmark."""

    steal: float = 0.0
    other: float = 0.0

    @property
    def level(self) -> float:
        """Above 1.0 the measurement counts as disturbed. It looks at noise alone, never at what was measured."""
        return max(self.steal / MAX_STEAL, self.other / MAX_OTHER)


MAX_STEAL, MAX_OTHER = 0.03, 0.25


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measurement of one peer. `turn` numbers the sweep it belongs to: samples of one turn lie seconds apart.

    Values by name; a failed measurement has none of them and a `fault` instead.
    """

    peer: str
    workers: int
    measure: str
    turn: int
    values: dict[str, float] = {}
    noise: Noise = Noise()
    tries: int = 1
    fault: str = ""

    @property
    def sound(self) -> bool:
        """Whether everything asked for was done and every body and count was right."""
        return not self.fault and not self.values.get("bad")


class Record(msgspec.Struct, omit_defaults=True):
    """A whole run. `machine` and `versions` are for the reader; `skipped` says by peer why it was not measured,
    `faults` what ended a peer's part early, and `notes` what else a reader must know, all in plain words."""

    machine: dict[str, str]
    started: str
    versions: dict[str, str] = {}
    skipped: dict[str, str] = {}
    faults: list[str] = []
    notes: list[str] = []
    samples: list[Sample] = []
