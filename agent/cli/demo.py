"""culvert demo: the product shown on real traffic, on this machine alone."""

import sys

import click

from agent.cli.output import Refused


@click.command()
@click.option("--keep", is_flag=True, help="Leave it running, and say how to look around, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON; progress goes to stderr.")
def demo(keep: bool, as_json: bool) -> None:
    """See Culvert work: two machines and real programs, here, now.

    Everything runs in namespaces of its own: this machine's network is not
    touched, and nothing is left behind. As root it also shows workloads told
    apart by uid and by cgroup.

    \b
    culvert demo
    culvert demo --keep
    """
    from agent.lab import world

    try:
        world.check()
    except world.WorldError as error:
        raise Refused(str(error)) from error
    flags = [flag for flag, given in (("--keep", keep), ("--json", as_json)) if given]
    sys.exit(world.run("agent.lab.demo", flags))
