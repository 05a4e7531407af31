"""culvert agent run. What it needs is imported bit by bit: in which order decides how much memory an agent takes."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from agent import lean
from agent.cli.output import Refused

if TYPE_CHECKING:
    from agent.forking import Forked
    from agent.settings import AgentSettings


@click.command(name="run")
@click.option("--config", type=click.Path(path_type=Path), help="Settings.  [default: /etc/culvert/agent.toml]")
@click.option("--state-dir", type=click.Path(path_type=Path), help="Keys, certificates and view.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Where the admin socket is made.")
@click.option("--centre", metavar="HOST:PORT", help="The centre, if not the one of the token.")
@click.option("--workers", type=int, help="Worker processes; 0: one for each core.")
@click.option("--worker-user", metavar="USER", help="Who workers run as.  [default: culvert]")
@click.option("--access-log", metavar="FILE", help="One line for each connection; - is stdout.")
@click.option("--log-level", help="debug, info, warning or error.")
def run(config: Path | None, **flags: Any) -> None:
    """Run the agent until SIGTERM; SIGHUP reopens the access log.

    Capture stays in the kernel when the agent goes: connections of enrolled
    workloads are then refused, not sent in clear.

    \b
    culvert agent run
    culvert agent run --access-log /var/log/culvert/access.log
    """
    lean.begin()
    from agent.cli.local import agent_settings
    from agent.forking import fork_workers

    settings = agent_settings(config, flags)
    # Before all else that this command needs: workers are to inherit nothing of it.
    if settings.worker_count > 1:
        import agent.worker.worker  # noqa: F401 - several workers share that as well
    _run(settings, fork_workers(_worker, settings.worker_count))


def _worker(channel: int) -> None:
    from agent.worker.worker import serve  # the other side of the node

    serve(channel)


def _run(settings: "AgentSettings", forked: "Sequence[Forked]") -> None:
    import trio

    from agent.cli import logs
    from agent.cli.version import installed_version
    from agent.node.supervisor import AgentError, run_agent
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
