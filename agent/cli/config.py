"""culvert config: which settings hold, and where each came from."""

import os
from pathlib import Path

import click

from agent import settings as agent_settings
from agent.cli.output import Refused, output_option, show
from ca import central
from ca.settings import Loaded, SettingsError, describe


@click.group()
def config() -> None:
    """Settings: files, environment, and what they come to.

    \b
    culvert config show central
    """


@config.command(name="show")
@click.argument("program", type=click.Choice(["agent", "central"]), required=False)
@click.option("--config", "file", type=click.Path(path_type=Path), help="A file other than the usual one.")
@click.option("--explain", is_flag=True, help="Say what each setting means.")
@output_option()
def show_(program: str | None, file: Path | None, explain: bool, output: str) -> None:
    """Print the settings of agent and centre, and where each came from.

    Defaults < /etc/culvert/*.toml < $CULVERT_* < flags.

    \b
    culvert config show
    culvert config show agent --explain
    """
    if file and not program:
        raise click.UsageError("--config needs to know whose file it is: agent or central")
    entries: list[dict[str, str]] = []
    for name in [program] if program else ["agent", "central"]:
        loaded, prefix = _load(name, file)
        for setting, (key, value, origin) in zip(describe(type(loaded.settings), prefix), loaded.rows(), strict=True):
            entries.append(
                {
                    "program": name,
                    "key": key,
                    "value": value,
                    "from": origin,
                    "environment": setting.variable,
                    "meaning": setting.doc,
                }
            )
    columns = ["program", "key", "value", "meaning" if explain else "from"]
    show(output, entries, columns, [[e[c] for c in columns] for e in entries])


def _load(
    program: str, file: Path | None
) -> tuple[Loaded[central.CentralSettings] | Loaded[agent_settings.AgentSettings], str]:
    try:
        if program == "central":
            return central.load_central(os.environ, {}, file), central.PREFIX
        return agent_settings.load_settings(os.environ, {}, file), agent_settings.PREFIX
    except SettingsError as e:
        raise Refused(str(e)) from e
