"""culvert agent: the agent of this machine."""

import click

from agent.cli import Lazy


@click.group(
    cls=Lazy,
    lazy={
        "join": "agent.cli.joining:join_",
        "leave": "agent.cli.joining:leave",
        "run": "agent.cli.run:run",
    },
)
def agent() -> None:
    """The agent: joins this machine to a mesh and carries its connections.

    \b
    culvert agent join TOKEN     once; the token comes from the centre
    culvert agent run            for as long as the machine is up
    culvert agent leave          undo both
    """
