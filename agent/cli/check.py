"""culvert check: what must hold for capture to work on this machine."""

import os
import shutil
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import click

from agent.checks import CheckAnswer, Finding
from agent.checks.look import Node, look
from agent.cli.local import NoAgent, ask, socket_option
from agent.cli.output import Refused, note, output_option, show
from agent.cli.version import installed_version
from agent.node.files import StateError
from agent.node.seal import find as find_seal
from agent.node.state import State
from agent.settings import AgentSettings, load_settings
from ca.identity import NodeIdentity
from ca.settings import SettingsError

_SIGNS = {"ok": "✓", "warn": "!", "fail": "✗", "unknown": "?"}
_NAMES = 16
"""Columns for the name of a check."""


@click.command(name="check")
@output_option("table", "json")
@socket_option
def check(output: str, path: Path | None) -> None:
    """Check every precondition of this machine: cause and remedy of each fault.

    ✓ holds, ! will not hold for long or not for everybody, ✗ fails, ? could not
    be asked. Exit code 1 if one fails. A running agent is asked how it sees
    things, from within its sandbox; it works as far as it can in any case.

    \b
    culvert check
    """
    findings = _findings(path)
    if output == "json":
        show(output, CheckAnswer(findings), [], [])
    else:
        for finding in findings:
            click.echo("\n".join(_lines(finding)))
    if failed := sum(f.state == "fail" for f in findings):
        note(f"{failed} of {len(findings)} preconditions fail")
        sys.exit(1)


def _findings(path: Path | None) -> list[Finding]:
    try:
        settings = load_settings(os.environ).settings
    except SettingsError as error:
        raise Refused(str(error)) from error
    try:
        theirs = ask(path, "check", CheckAnswer).findings
    except NoAgent as error:
        note(f"{error}\nso this is what the command itself sees:")
        return look(settings, _node(settings))
    # The command fills in what the agent's sandbox hides from it.
    ours = {f.name: f for f in look(settings, Node(installed_version()))} if _hidden(theirs) else {}
    return [_compared(ours.get(f.name, f) if f.state == "unknown" else f, installed_version()) for f in theirs]


def _hidden(findings: list[Finding]) -> bool:
    return any(f.state == "unknown" for f in findings)


def _compared(finding: Finding, version: str) -> Finding:
    """An agent that was not restarted after an upgrade is worth a word."""
    said, _, running = finding.text.rpartition("Culvert ")
    if finding.name == "versions" and running and running != version:
        return Finding("versions", "warn", f"{said}Culvert {version}, but the agent is {running}", "restart the agent")
    return finding


def _node(settings: AgentSettings) -> Node:
    """What the disk knows; nothing is made there."""
    nothing = Node(installed_version(), centre=settings.centre)
    if not os.access(settings.state_dir, os.W_OK):
        return replace(nothing, leaves={} if not settings.state_dir.exists() else None)
    try:
        state = State(settings.state_dir, find_seal(settings.seal, os.environ))
        member, leaf = state.membership(), state.node_leaf()
        leaves = state.leaves()
        known = len({*state.ports().outbound, *state.ports().namespaces})
    except StateError:
        return nothing
    if member is None:
        return replace(nothing, leaves={})
    return Node(
        installed_version(),
        member.node,
        member.trust_domain,
        settings.centre or member.centre,
        leaves={**leaves, **({leaf.uri: leaf} if leaf else {})},
        own=str(NodeIdentity(member.trust_domain, member.node)),
        workloads=known,
    )


def _lines(finding: Finding) -> list[str]:
    """As they fit the terminal."""
    width = shutil.get_terminal_size().columns - _NAMES - 2
    rows = textwrap.wrap(finding.text, width, break_on_hyphens=False)
    if finding.remedy and finding.state != "ok":
        rows += textwrap.wrap(
            finding.remedy, width, initial_indent="→ ", subsequent_indent="  ", break_on_hyphens=False
        )
    first, *rest = rows
    return [f"{_SIGNS[finding.state]} {finding.name:<{_NAMES}}{first}", *(f"{'':{_NAMES + 2}}{row}" for row in rest)]
