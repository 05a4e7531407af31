"""culvert capture: what the kernel sends to the agent."""

import os
from pathlib import Path

import click

from agent.answers import CaptureAnswer, PlanAnswer
from agent.cli.local import NoAgent, ask, socket_option, tell
from agent.cli.output import Refused, note, output_option, show
from agent.settings import AgentSettings, load_settings
from ca.settings import SettingsError


@click.group()
def capture() -> None:
    """Capture: whose connections the kernel sends to the agent.

    When nothing of Culvert works, one line takes capture away:
    nft delete table inet culvert

    \b
    culvert capture status
    culvert capture off
    """


@capture.command(name="status")
@output_option("table", "json")
@socket_option
def status(output: str, path: Path | None) -> None:
    """Show who is captured, how each is recognised, and how many connections.

    CAPTURED were sent to the agent; BYPASSED went to no mesh address, or were
    left alone because a setting says so: SKIPPED counts these. UNMESHED are
    packets that the mesh does not carry (UDP and whatever else is not TCP),
    without questions for names, which `-o json` counts as `dns`.

    \b
    culvert capture status
    """
    answer = ask(path, "capture", CaptureAnswer)
    rows = [
        (
            *(r.workload, r.recognised, r.port, r.captured, r.bypassed, r.skipped),
            f"{r.unmeshed}, {r.blocked} blocked" if r.blocked else r.unmeshed,
        )
        for r in answer.rows
    ]
    empty = "nobody is captured" if answer.on else "capture is switched off; switch it on with `culvert capture on`"
    columns = ["workload", "recognised by", "port", "captured", "bypassed", "skipped", "unmeshed"]
    show(output, answer, columns, rows, empty)
    if output == "table":
        for row in answer.rows:
            if row.fail_mode == "open":
                note(f"{row.workload} fails open: {row.passed} connections passed while the agent was away")
        for problem in answer.problems:
            note(f"problem: {problem}")


@capture.command(name="plan")
@output_option("table", "json")
@socket_option
def plan_(output: str, path: Path | None) -> None:
    """Print the rules in force, in nft's language.

    \b
    culvert capture plan
    """
    answer = ask(path, "plan", PlanAnswer)
    if output == "json":
        show(output, answer, [], [])
        return
    for rules in answer.tables:
        click.echo(f"# {rules.place or 'this machine'}\n{rules.text}")
    if not answer.tables:
        note("no rules: nobody is captured")


@capture.command(name="off")
@socket_option
def off(path: Path | None) -> None:
    """Take all capture away, and keep it so until `culvert capture on`.

    Connections of enrolled workloads then travel in clear. Works without a
    running agent.

    \b
    culvert capture off
    """
    _switch(path, off=True)


@capture.command(name="on")
@socket_option
def on(path: Path | None) -> None:
    """Capture again what the mesh says.

    \b
    culvert capture on
    """
    _switch(path, off=False)


def _switch(path: Path | None, *, off: bool) -> None:
    try:
        click.echo(tell(path, "capture/off" if off else "capture/on"))
    except NoAgent:
        from agent.cli.offline import switch_offline

        click.echo(switch_offline(_settings(), off=off))


def _settings() -> AgentSettings:
    try:
        return load_settings(os.environ).settings
    except SettingsError as error:
        raise Refused(str(error)) from error
