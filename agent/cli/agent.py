"""culvert agent: the agent of this machine."""

import os
import sys
from pathlib import Path
from typing import Any

import click
import trio

from agent.cli.local import NoAgent, socket_option, tell
from agent.cli.output import Refused, note
from agent.settings import AgentSettings, load_settings
from ca.settings import SettingsError


@click.group()
def agent() -> None:
    """The agent: joins this machine to a mesh and carries its connections.

    \b
    culvert agent join TOKEN     once; the token comes from the centre
    culvert agent run            for as long as the machine is up
    culvert agent leave          undo both
    """


_config_option = click.option(
    "--config", type=click.Path(path_type=Path), help="Settings.  [default: /etc/culvert/agent.toml]"
)
_state_option = click.option("--state-dir", type=click.Path(path_type=Path), help="Keys, certificates and view.")
_address_option = click.option("--address", metavar="IP", help="Where other machines reach this one.")


@agent.command(name="run")
@_config_option
@_state_option
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where the admin socket is made.")
@click.option("--centre", metavar="HOST:PORT", help="The centre, if not the one of the token.")
@click.option("--workers", type=int, help="Worker processes; 0: one for each core.")
@click.option("--worker-user", metavar="USER", help="Who workers run as.  [default: culvert]")
@click.option("--access-log", metavar="FILE", help="One line for each connection; - is stdout.")
@click.option("--log-level", help="debug, info, warning or error.")
def run_(config: Path | None, **flags: Any) -> None:
    """Run the agent until SIGTERM; SIGHUP reopens the access log.

    Capture stays in the kernel when the agent goes: connections of enrolled
    workloads are then refused, not sent in clear.

    \b
    culvert agent run
    culvert agent run --access-log /var/log/culvert/access.log
    """
    settings = _settings(config, flags)
    from agent.forking import fork_workers

    # Before all else that `run` needs: workers are to inherit nothing of it.
    if settings.worker_count > 1:
        import agent.worker.worker  # noqa: F401 - several workers share that as well
    forked = fork_workers(_worker, settings.worker_count)
    from agent.cli import logs
    from agent.node.supervisor import AgentError, run_agent  # the tasks; the other commands do without
    from agent.telemetry.log import log_to
    from agent.telemetry.sink import Sink

    logs.configure(settings.log_level)
    sink = Sink("-", standard=sys.stderr.fileno())
    log_to(sink)
    try:
        trio.run(run_agent, settings, installed_version(), forked)
    except AgentError as error:
        raise Refused(str(error)) from error
    finally:
        sink.close()


def _worker(channel: int) -> None:
    from agent.worker.worker import serve  # the other side of the node

    serve(channel)


@agent.command(name="join")
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
    settings = _settings(config, flags)
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
    note("next: culvert agent run")


@agent.command(name="leave")
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

        click.echo(leave_offline(_settings(config, {"state_dir": state_dir})))


def _settings(config: Path | None, flags: dict[str, Any]) -> AgentSettings:
    try:
        return load_settings(os.environ, flags, config).settings
    except SettingsError as error:
        raise Refused(str(error)) from error


def installed_version() -> str:
    """The version of this installation.

    As its directory is called: importlib.metadata takes a megabyte of memory, for as long as an agent runs.
    """
    for place in sys.path:
        for found in Path(place).glob("culvert-*.dist-info"):
            return found.name.removesuffix(".dist-info").removeprefix("culvert-")
    return "0+source"
