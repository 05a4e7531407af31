"""How the demo speaks: one line per step, 80 columns, colours only on a terminal."""

import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import click
import trio

_TITLE, _RESULT = 11, 56
"""Columns: with the tick, the time and the blanks between them 80."""


class Step:
    """A step under way; `result` is what its line will say at the end, `strong` that it is what matters."""

    def __init__(self) -> None:
        self.result = ""
        self.strong = False


class Voice:
    """Speaks to `out`. Keeps the time since it began."""

    def __init__(self, out: TextIO = sys.stdout) -> None:
        self._out = out
        self._live = out.isatty()
        self._begin = trio.current_time()

    def say(self, text: str = "", *, bold: bool = False, dim: bool = False) -> None:
        """A line of its own."""
        click.echo(click.style(text, bold=bold, dim=dim), file=self._out, color=None if self._live else False)

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """A step: on a terminal its title stands while it lasts. The line is complete when it ends well."""
        if self._live:
            self._out.write(f"  · {title}...")
            self._out.flush()
        step = Step()
        mark, colour = "✗", "red"
        try:
            yield step
            mark, colour = "✓", "green"
        finally:
            if self._live:
                self._out.write("\r\033[K")
            seconds = f"{trio.current_time() - self._begin:5.1f} s"
            first, *rest = textwrap.wrap(step.result, _RESULT) or [""]
            tick = click.style(mark, fg=colour)
            said = click.style(f"{first:<{_RESULT}}", bold=step.strong)
            self.say(f"  {tick} {title:<{_TITLE}} {said} {click.style(seconds, dim=True)}")
            for more in rest:
                self.say(f"    {'':<{_TITLE}} {click.style(more, bold=step.strong)}")

    def table(self, command: str, text: str) -> None:
        """A command as it would be typed, and what it printed."""
        self.say()
        self.say(f"$ {command}", bold=True)
        self.say(text.rstrip())
