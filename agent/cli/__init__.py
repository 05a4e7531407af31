"""The command `culvert`; the only place that may see everything.

Each command lives in a file of its own and is imported when it is used, so that `culvert agent run` does not pay for
what the others need.
"""

import contextlib
import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import click

_COMMANDS = {
    "agent": "agent.cli.agent:agent",
    "apply": "agent.cli.resources:apply",
    "ca": "agent.cli.ca:ca",
    "capture": "agent.cli.capture:capture",
    "central": "agent.cli.central:central",
    "certificates": "agent.cli.node:certificates",
    "check": "agent.cli.check:check",
    "config": "agent.cli.config:config",
    "connections": "agent.cli.node:connections",
    "delete": "agent.cli.resources:delete",
    "demo": "agent.cli.demo:demo",
    "discovered": "agent.cli.discovered:discovered",
    "explain": "agent.cli.explain:explain",
    "get": "agent.cli.resources:get",
    "label": "agent.cli.resources:label",
    "policy": "agent.cli.policy:policy",
    "schema": "agent.cli.resources:schema",
    "status": "agent.cli.node:status",
    "tunnels": "agent.cli.node:tunnels",
    "workloads": "agent.cli.node:workloads",
}


class Lazy(click.Group):
    """A group that imports each command, `module:name`, when it is used."""

    def __init__(self, *arguments: Any, lazy: Mapping[str, str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module, _, name = self._lazy[cmd_name].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)
        return command

    def make_context(self, *arguments: Any, **extra: Any) -> click.Context:
        """As click does, with errors that fit the terminal."""
        with _fitting():
            return super().make_context(*arguments, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        """Likewise: the commands below read their own parts of the line in here."""
        with _fitting():
            return super().invoke(ctx)


@contextlib.contextmanager
def _fitting() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        if type(error).show is not click.UsageError.show:
            raise  # it shows a help text instead
        from agent.cli.output import Misused

        raise Misused(error.format_message(), error.ctx) from error


@click.group(
    cls=Lazy, lazy=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80}
)
@click.version_option(package_name="culvert")
def main() -> None:
    """Culvert: mTLS between the workloads of ordinary machines.

    \b
    culvert central init --trust-domain shop.example   start a mesh
    culvert agent join TOKEN                           add this machine
    culvert label workload shop/web mesh=on            enrol a workload
    culvert connections                                who talks to whom
    culvert demo                                       see it work, here
    """
