"""culvert discovered: what this machine found on itself."""

from collections.abc import Iterable
from pathlib import Path

import click

from agent.answers import DiscoveredAnswer, DiscoveredRow
from agent.cli.local import ask, socket_option
from agent.cli.output import note, output_option, show


@click.command(name="discovered")
@output_option("table", "wide", "json")
@socket_option
def discovered(output: str, path: Path | None) -> None:
    """Show the workloads that this machine found on itself.

    What it may register, an operator says in the Node's spec.discovery.
    -o wide adds where each was found and its service account.

    \b
    culvert discovered
    culvert discovered -o wide
    """
    answer = ask(path, "discovered", DiscoveredAnswer)
    columns = ["workload", "source", "recognised by", "ports", "state"]
    rows = [[r.workload, r.source, r.recognised, _ports(r), r.state] for r in answer.rows]
    if output == "wide":
        columns[1:2] = ["account", "source", "found in"]
        rows = [[row[0], r.account, r.source, r.place, *row[2:]] for row, r in zip(rows, answer.rows, strict=True)]
    looking = ", ".join(answer.sources) or "no source is switched on"
    show(output, answer, columns, rows, f"nothing was found here ({looking})")
    if output != "json":
        for row in answer.rows:
            if row.why:
                note(f"refused: {row.workload}: {row.why}")
        _problems(answer.problems)


def _ports(row: DiscoveredRow) -> str:
    return ",".join(map(str, row.ports)) or "-"


def _problems(problems: Iterable[str]) -> None:
    for problem in problems:
        note(f"problem: {problem}")
