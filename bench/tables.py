"""A record -> what people read: the tables of docs/performance.md, and the one line of `quick`. Pure."""

import json
from collections.abc import Iterable, Sequence

from bench.judging import Figure, Results
from bench.rows import COST, QUICK, SCALE, SPEED, STEADY, STEADY_COST, Row
from bench.samples import Record

COST_TITLE = "Cost, both ends of a peer together; memory is PSS of all its processes."
STEADY_TITLE = "Latency added over `direct` at a fixed 1,000 requests/s of 1 KB, counted from when each was due."

BASE, US, WIRE = "envoy-hbone", "culvert", "direct"
CAPTURED = "envoy-captured"
BEGIN, END = "<!-- bench:begin, written by `make bench` -->", "<!-- bench:end -->"


def quick_line(record: Record) -> str:
    """Culvert / Envoy in HBONE mode, one worker each; null for what could not be measured."""
    results = Results(record.samples)
    ratios = {row.key: results.ratio(US, BASE, 1, row.measure, row.value) for row in QUICK}
    return json.dumps({key: round(figure.median, 3) if figure else None for key, figure in ratios.items()})


def document(text: str, section: str) -> str:
    """`text` with what stands between the markers replaced; ValueError when it has no such place."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place for results: it needs a line {BEGIN} and, below, a line {END}")
    return f"{before}{BEGIN}\n\n{section.strip()}\n\n{END}{after}"


def section(main: Record, scale: Record | None = None) -> str:
    """Everything between the markers, in Markdown."""
    parts = [_about(main)]
    results = Results(main.samples)
    measured = {s.peer for s in main.samples}
    peers = [name for name in main.versions if name in measured]
    carriers = [name for name in peers if name != WIRE]
    for workers in sorted({s.workers for s in main.samples}):
        word = "one worker each" if workers == 1 else f"{workers} workers each"
        parts += [
            f"### {word[0].upper()}{word[1:]}",
            *(_ratios(results, workers, base) for base in (BASE, CAPTURED)),
            _table(results, peers, workers, SPEED),
            _titled(COST_TITLE, _table(results, carriers, workers, COST)),
            _titled(STEADY_TITLE, _table(results, carriers, workers, STEADY, added=True)),
            _table(results, carriers, workers, STEADY_COST),
        ]
    if scale and scale.samples:
        names = list(dict.fromkeys(s.peer for s in scale.samples))
        parts += [
            "### Against the size of the mesh",
            "`culvert-N` has N more workloads in its registry, all enrolled, elsewhere and silent; `culvert-policies` "
            "has 10,000 more policies for the server, which allow others.",
            _table(Results(scale.samples), names, 1, SCALE),
        ]
    parts += [_troubles([main, scale] if scale else [main])]
    return "\n\n".join(part for part in parts if part)


def _about(record: Record) -> str:
    facts = ", ".join(f"{name} {value}" for name, value in record.machine.items())
    versions = ", ".join(f"{name} {value}" for name, value in record.versions.items() if name not in (WIRE, US))
    return (
        f"Measured {record.started} on one machine: {facts}. Peers: {versions}. Client, servers and both ends of a "
        "peer share its cores, so throughput is that of the machine. Each cell is the median of undisturbed "
        "measurements and, in brackets, their spread, (max - min) / median."
    )


def _titled(title: str, table: str) -> str:
    return f"{title}\n\n{table}" if table else ""


def _ratios(results: Results, workers: int, base: str) -> str:
    """What the project is judged by."""
    rows = [(row, results.ratio(US, base, workers, row.measure, row.value)) for row in (*SPEED, *COST)]
    lines = [
        [row.title, f"{f.median:.2f}", f"{f.low:.2f} to {f.high:.2f}", str(f.count)] for row, f in rows if f is not None
    ]
    if not lines:
        return ""
    return f"Culvert / {base}, turn by turn:\n\n" + _markdown(["", "median ratio", "range", "turns"], lines)


def _table(results: Results, peers: Sequence[str], workers: int, rows: Iterable[Row], *, added: bool = False) -> str:
    lines = []
    for row in rows:
        figures = [
            results.added(peer, WIRE, workers, row.measure, row.value)
            if added
            else results.figure(peer, workers, row.measure, row.value)
            for peer in peers
        ]
        if any(figures):
            lines.append([row.title, *(_cell(figure, row.digits, spread=not added) for figure in figures)])
    return _markdown(["", *peers], lines) if lines else ""


def _cell(figure: Figure | None, digits: int, *, spread: bool) -> str:
    if figure is None:
        return "-"
    text = f"{figure.median:,.{digits}f}"
    return f"{text} ({figure.spread:.0%})" if spread and figure.count > 1 else text


def _markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("---:" for _ in head[1:])]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *lines))


def _troubles(records: Iterable[Record]) -> str:
    """What was not measured, what failed, and what a reader must know."""
    lines: list[str] = []
    for record in records:
        lines += [f"- {note}" for note in record.notes]
        lines += [f"- {peer} was skipped: {why}" for peer, why in record.skipped.items()]
        lines += [f"- failed: {fault}" for fault in record.faults]
        lines += [
            f"- not counted: {s.peer}, {s.workers} workers, {s.measure}, turn {s.turn}: "
            + (s.fault or f"{s.values.get('bad', 0):,.0f} wrong or lost")
            for s in Results(record.samples).unsound
        ]
    return "\n".join(dict.fromkeys(line.replace("\n", " ") for line in lines))
