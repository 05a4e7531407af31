"""culvert agent join and leave."""

import os
import sys
from pathlib import Path
from typing import Any

import click
import trio

from agent.cli.local import NoAgent, agent_settings, socket_option, tell
from agent.cli.output import Refused, note

_config_option = click.option(
    "--config", type=click.Path(path_type=Path), help="Settings.  [default: /etc/culvert/agent.toml]"
)
_state_option = click.option("--state-dir", type=click.Path(path_type=Path), help="Keys, certificates and view.")
_address_option = click.option("--address", metavar="IP", help="Where other machines reach this one.")


@click.command(name="join")
@click.argument("text", metavar="TOKEN")
@_config_option
@_state_option
@click.option("--centre", metavar="HOST:PORT", help="The centre, if not the one of the token.")
@_address_option
@click.option("--force", is_flag=True, help="Replace what an earlier join left.")
def join_(text: str, config: Path | None, force: bool, **flags: Any) -> None:
    """Join a mesh with a token from the centre; - reads it from stdin.

    The node's key is made here and never leaves this machine.

    \b
    culvert agent join culvert1.eyJhZGRyZXNz...
    """
    settings = agent_settings(config, flags)
    from agent.node.files import StateError
    from agent.node.join import JoinError, join
    from agent.node.seal import find
    from agent.node.state import State

    async def go() -> str:
        member = await join(
            State(settings.state_dir, find(settings.seal, os.environ)),
            sys.stdin.read() if text == "-" else text,
            centre=settings.centre,
            address=settings.address,
            tunnel_port=settings.tunnel_port,
            force=force,
        )
        return f"this machine is node {member.node} of {member.trust_domain}, with the centre at {member.centre}"

    try:
        click.echo(trio.run(go))
    except (JoinError, StateError) as error:
        raise Refused(str(error)) from error
    note("next: culvert agent run" + (", or restart the one that runs: it goes on as what it was" if force else ""))


@click.command(name="leave")
@_config_option
@_state_option
@socket_option
def leave(config: Path | None, state_dir: Path | None, path: Path | None) -> None:
    """Leave the mesh: capture ends, keys and certificates are deleted.

    The agent ends, too. It need not run.

    \b
    culvert agent leave
    """
    try:
        click.echo(tell(path, "leave"))
    except NoAgent:
        from agent.cli.offline import leave_offline

        click.echo(leave_offline(agent_settings(config, {"state_dir": state_dir})))
