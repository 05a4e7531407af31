"""How commands speak: tables for people, JSON and YAML for programs, errors with an exit code.

Exit codes: 0 done, 1 refused (by the centre, the agent or this machine), 2 the command line was wrong. Data goes to
stdout, everything else to stderr.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

if TYPE_CHECKING:
    from rich.table import Table

_F = TypeVar("_F", bound=Callable[..., Any])

_PIPE_WIDTH = 10_000
"""Columns when nobody looks: a line must not be folded before grep and awk see it."""


_ORDERS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""Control characters, and what is shown for them."""


class Refused(click.ClickException):
    """It cannot be done; the message names the object, the cause and the next step. Exit code 1."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        """Print the message to stderr."""
        click.echo(_fitted(f"culvert: {self.format_message()}"), file=file, err=file is None)


class Misused(click.UsageError):
    """The command line was wrong, in click's words but as wide as the terminal. Exit code 2."""

    def format_message(self) -> str:
        """What stands behind `Error: `, which click itself puts in front."""
        return _fitted(f"Error: {self.message}").removeprefix("Error: ")


def output_option(*formats: str) -> Callable[[_F], _F]:
    """The option `-o/--output`, passed on as `output`; the first format is the default."""
    names = formats or ("table", "json")
    return click.option(
        "-o", "--output", type=click.Choice(names), default=names[0], show_default=True, help="How to print."
    )


def show(output: str, data: object, columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "") -> None:
    """Print `data` as json or yaml, or `rows` below `columns` as a table. `empty` goes to stderr for a table without
    rows."""
    match output:
        case "json":
            click.echo(msgspec.json.format(msgspec.json.encode(data, enc_hook=str), indent=2).decode())
        case "yaml":
            click.echo(to_yaml(data), nl=False)
        case _:
            table(columns, rows, empty)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str = "") -> None:
    """Print a table that fits the terminal; cells too long for it are folded, not cut."""
    from rich.table import Table  # here, not above: the agent's own process comes by this module, and prints no tables
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        grid.add_column(column.upper(), overflow="fold")
    for row in rows:
        # Text, not str: what stands in brackets is data here, not markup.
        grid.add_row(*(Text(plain(str(cell))) for cell in row))
    if grid.row_count or not empty:
        text = _render(grid)
        click.echo("\n".join(line.rstrip() for line in text.splitlines()))
    else:
        note(empty)


def to_yaml(data: object) -> str:
    """`data` (built-in types, or what msgspec can turn into them) as one YAML document."""
    import yaml  # likewise

    plain = msgspec.to_builtins(data, enc_hook=str, order="deterministic" if isinstance(data, set) else None)
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=False)


def note(text: str) -> None:
    """A word to the person, beside the data: stderr."""
    click.echo(_fitted(text), err=True)


def warn(text: str) -> None:
    """Something that works today and will not for long: stderr."""
    click.echo(_fitted(f"culvert: warning: {text}"), err=True)


def plain(text: str) -> str:
    """`text` without what a terminal takes for orders: a node that was taken over reports what it likes, and whoever
    looks at it must not have his screen written, or his clipboard filled, from there."""
    return text.translate(_ORDERS)


def _fitted(text: str) -> str:
    """`text` with lines no longer than the terminal's, where stderr is one: for whoever else reads it, a message stays
    one line. Words are not broken, so that a path can still be copied."""
    text = plain(text)
    if not sys.stderr.isatty():
        return text
    import textwrap  # nor is this for commands that run for months

    width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    return "\n".join(
        textwrap.fill(line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        if len(line) > width
        else line
        for line in text.split("\n")
    )


def ago(seconds: float) -> str:
    """A length of time for a table: 4s, 12m, 3h, 20d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def size(count: float) -> str:
    """Bytes for a table: 512, 1.4K, 23M."""
    for unit in ("", "K", "M", "G"):
        if count < 1000:
            return f"{count:.0f}{unit}" if not unit or count >= 10 else f"{count:.1f}{unit}"
        count /= 1024
    return f"{count:.1f}T"


def _render(grid: "Table") -> str:
    import shutil  # neither is for commands that run for months

    from rich.console import Console

    interactive = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if interactive or os.environ.get("COLUMNS") else _PIPE_WIDTH
    console = Console(width=width, force_terminal=interactive, no_color=None if interactive else True, highlight=False)
    with console.capture() as capture:
        console.print(grid)
    return capture.get()
