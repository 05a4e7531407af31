"""culvert capture: what the kernel sends to the agent."""

import os
import textwrap
from collections.abc import Iterator
from pathlib import Path

import click

from agent.answers import CaptureAnswer, HeldRow, PlanAnswer, StatusAnswer, TrialRequest, UnnamedRow
from agent.cli.local import NoAgent, ask, socket_option, tell
from agent.cli.output import Refused, note, output_option, show
from agent.node.exempt import logged_in_remotely
from agent.settings import AgentSettings, load_settings
from ca.duration import Duration
from ca.settings import SettingsError

SHORTEST, LONGEST = 5.0, 86400.0
"""Seconds of a trial: time to say `confirm`, and a day."""


@click.group()
def capture() -> None:
    """Capture: whose connections the kernel sends to the agent.

    When nothing of Culvert works, and no agent runs, one line takes
    capture away: nft delete table inet culvert

    \b
    culvert capture status
    culvert capture plan
    culvert capture apply --confirm 60s
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

    Below stands what was held until it was known whose it is: what new
    containers and new cgroups send to the mesh; and what passed while the
    agent was away, where `failMode: open` lets it.

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
        for line in (*_unnamed(answer.unnamed), *_held(answer.held)):
            note(line)
        if answer.trial:
            note(f"tried for {answer.trial:.0f} s more; keep it with `culvert capture confirm`")
        for problem in answer.problems:
            note(f"problem: {problem}")


def _unnamed(passed: UnnamedRow) -> Iterator[str]:
    for count, whose in ((passed.units, "units"), (passed.containers, "containers")):
        if count:
            yield f"passed while the agent was away: {count} connections of new {whose}"


def _held(held: HeldRow) -> Iterator[str]:
    if held.waited:
        yield f"held until known: {held.waited} packets of new containers"
    if held.refused:
        yield f"refused: {held.refused} packets of containers that had no rules"
    if held.sheltered:
        yield f"refused while the agent was away: {held.sheltered} packets for containers and other namespaces"
    if held.delayed:
        yield f"delayed until it had rules: {held.delayed} packets for new containers"
    if held.asked:
        yield f"held until known: {held.asked} connections of new cgroups"


@capture.command(name="plan")
@click.option("--full", is_flag=True, help="Print all the rules instead.")
@output_option("table", "json")
@socket_option
def plan_(full: bool, output: str, path: Path | None) -> None:
    """Print what would change in the kernel, in words and in nft's language.

    Lines with + come, lines with - go. While capture is off, this is what
    switching it on would do.

    \b
    culvert capture plan
    culvert capture plan --full
    """
    answer = ask(path, "plan", PlanAnswer)
    if output == "json":
        show(output, answer, [], [])
    elif full:
        for rules in answer.tables:
            click.echo(f"# {rules.place or 'this machine'}\n{rules.text}")
    else:
        _print_plan(answer)


def _print_plan(answer: PlanAnswer) -> None:
    changes = [rules for rules in answer.tables if rules.difference]
    for rules in changes:
        click.echo(f"# {rules.place or 'this machine'}")
        for word in rules.words:
            click.echo(f"#   {word}")
        click.echo(rules.difference)
    click.echo("# never captured, whatever the mesh says:")
    for word in answer.never:
        for line in textwrap.wrap(word, 76, initial_indent="#   ", subsequent_indent="#     "):
            click.echo(line)
    if not answer.tables:
        note("no rules: nobody is captured")
    elif not changes:
        note("nothing to change: the kernel holds what the mesh asks for")
    elif not answer.on:
        note("capture is off; `culvert capture apply --confirm 60s` tries this")


@capture.command(name="apply")
@click.option("--confirm", metavar="TIME", help="How long to try; 0: for good.  [default: 60s in a remote login]")
@socket_option
def apply_(confirm: str | None, path: Path | None) -> None:
    """Switch capture on for a trial, which ends by itself unless confirmed.

    The kernel holds the timer: it ends whatever becomes of this command, of
    your login, and of the agent. A restart of the machine ends it, too.

    \b
    culvert capture plan
    culvert capture apply --confirm 60s
    culvert capture confirm
    """
    try:
        seconds = Duration.read(confirm if confirm is not None else _usual())
    except ValueError as error:
        raise click.UsageError(f"--confirm: {error}") from error
    if seconds and not SHORTEST <= seconds <= LONGEST:
        raise click.UsageError(
            f"--confirm {seconds}: a trial lasts from {SHORTEST:g}s to {LONGEST / 3600:g}h; 0 is for good"
        )
    click.echo(tell(path, "capture/apply", TrialRequest(float(seconds), _login())))


@capture.command(name="confirm")
@socket_option
def confirm(path: Path | None) -> None:
    """Keep capture on, which `culvert capture apply` tries.

    \b
    culvert capture confirm
    """
    click.echo(tell(path, "capture/confirm"))


def _usual() -> str:
    return "60s" if logged_in_remotely(os.getpid(), os.environ) else "0"


def _login() -> tuple[str, int] | None:
    """The end of the operator's own connection on this machine, as sshd tells it."""
    match os.environ.get("SSH_CONNECTION", "").split():
        case [_, _, address, port] if port.isdigit():
            return address.removeprefix("::ffff:"), int(port)
    return None


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


@capture.command(name="guard")
@socket_option
def guard(path: Path | None) -> None:
    """Put the last known rules into the kernel, before the agent starts.

    For the time between a boot and the agent: until it answers, connections
    of enrolled workloads are refused, or pass and are counted where failMode
    is open. culvert-guard.service runs it before the network is up.

    \b
    culvert capture guard
    """
    try:
        ask(path, "status", StatusAnswer)
    except NoAgent:
        from agent.cli.offline import guard_offline

        click.echo(guard_offline(_settings()))
    else:
        click.echo("the agent runs, and keeps the rules itself")


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
