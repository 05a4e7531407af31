from bench.judging import Figure, Results
from bench.samples import Noise, Sample

LOUD = Noise(other=0.5)


def sample(peer: str, turn: int, value: float, noise: Noise = Noise(), **more: object) -> Sample:  # noqa: B008
    values = {"rps": value} | {k: float(v) for k, v in more.items() if isinstance(v, int | float)}
    return Sample(peer, 1, "wrk16", turn, values, noise)


def test_median_and_spread() -> None:
    figure = Results([sample("a", n, v) for n, v in enumerate((90, 100, 120))]).figure("a", 1, "wrk16", "rps")
    assert figure == Figure(100, 90, 120, 3)
    assert figure.spread == 0.3


def test_disturbed_samples_are_left_out() -> None:
    results = Results([sample("a", 0, 10, LOUD), sample("a", 1, 100), sample("a", 2, 102)])
    assert results.figure("a", 1, "wrk16", "rps") == Figure(101, 100, 102, 2)


def test_the_calmest_stands_in_where_all_are_disturbed() -> None:
    results = Results([sample("a", 0, 10, Noise(steal=0.9)), sample("a", 1, 100, LOUD)])
    assert results.figure("a", 1, "wrk16", "rps") == Figure(100, 100, 100, 1)


def test_what_failed_or_was_wrong_is_in_no_figure() -> None:
    failed = Sample("a", 1, "wrk16", 0, fault="no answer")
    wrong = sample("a", 1, 1e9, bad=1)
    results = Results([failed, wrong])
    assert results.figure("a", 1, "wrk16", "rps") is None
    assert list(results.unsound) == [failed, wrong]


def test_ratio_is_taken_turn_by_turn() -> None:
    # The machine halves its speed after the first turn: only within a turn is there a ratio worth a name.
    ours = [sample("culvert", 0, 200), sample("culvert", 1, 110), sample("culvert", 2, 130)]
    theirs = [sample("envoy", 0, 200), sample("envoy", 1, 100), sample("envoy", 2, 100)]
    assert Results([*ours, *theirs]).ratio("culvert", "envoy", 1, "wrk16", "rps") == Figure(1.1, 1.0, 1.3, 3)


def test_ratio_needs_both_of_a_turn_and_calm() -> None:
    ours = [sample("culvert", 0, 200), sample("culvert", 1, 110), sample("culvert", 2, 90)]
    theirs = [sample("envoy", 0, 100, LOUD), sample("envoy", 1, 100)]
    assert Results([*ours, *theirs]).ratio("culvert", "envoy", 1, "wrk16", "rps") == Figure(1.1, 1.1, 1.1, 1)


def test_no_ratio_to_nothing() -> None:
    results = Results([sample("culvert", 0, 1), sample("envoy", 0, 0)])
    assert results.ratio("culvert", "envoy", 1, "wrk16", "rps") is None
    assert results.ratio("culvert", "nobody", 1, "wrk16", "rps") is None


def test_added_is_a_difference_and_may_be_negative() -> None:
    samples = [sample("direct", 0, 100), sample("direct", 1, 120), sample("a", 0, 90), sample("a", 1, 150)]
    assert Results(samples).added("a", "direct", 1, "wrk16", "rps") == Figure(10, -10, 30, 2)
