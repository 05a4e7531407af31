"""What a node's own agent knows: status, workloads, certificates, connections, tunnels."""

import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import click

from agent.answers import (
    CertificatesAnswer,
    ConnectionsAnswer,
    EarlierAnswer,
    StatusAnswer,
    TunnelsAnswer,
    WorkloadRow,
    WorkloadsAnswer,
)
from agent.cli.local import ask, order, socket_option
from agent.cli.output import ago, note, output_option, plain, show, size
from agent.clock import Skew, spell
from agent.connections import Connection, Party

RECENT = 20
_formats = output_option("table", "wide", "json")


@click.command(name="status")
@output_option("table", "json")
@socket_option
def status(output: str, path: Path | None) -> None:
    """Show how this machine's agent is; exit code 0 says only that it answers.

    \b
    culvert status
    culvert status -o json
    """
    s = ask(path, "status", StatusAnswer)
    centre = f"connected to {s.centre}" if s.connected else f"no session with {s.centre}: {s.centre_problem}"
    lag = "" if s.active == s.revision else f" (revision {s.revision} is known)"
    rows = [
        ("node", f"{s.node} of {s.trust_domain}"),
        ("agent", f"{s.version}, up {ago(s.time - s.started)}, {size(s.memory)} of memory"),
        ("centre", centre),
        ("clock", _clock(s)),
        ("acts on", f"revision {s.active}{lag}"),
        ("ready", "yes" if s.ready else f"no: {s.not_ready}"),
        ("capture", "on" if s.capture else "off (`culvert capture on`)"),
        ("workloads", f"{s.workloads} enrolled here"),
        ("workers", f"{s.workers} serving, {s.worker_restarts} replaced since start"),
        ("carrying", f"{s.connections} connections, {s.tunnels} tunnels"),
    ]
    if output == "json":
        show(output, s, [], [])
        return
    for name, text in rows:
        click.echo(plain(f"{name:<10} {text}"))
    for problem in s.problems:
        note(f"problem: {problem}")


def _clock(s: StatusAnswer) -> str:
    if s.clock_ahead is None:
        return "the centre has not told its time yet"
    return f"{Skew(s.clock_ahead, s.clock_uncertainty)}, give or take {spell(s.clock_uncertainty)}"


@click.command(name="workloads")
@_formats
@socket_option
def workloads(output: str, path: Path | None) -> None:
    """Show the workloads of this machine and how far each is in the mesh.

    \b
    culvert workloads
    culvert workloads -o wide
    """
    answer = ask(path, "workloads", WorkloadsAnswer)
    columns = ["workload", "serves", "recognised by", "state", "certificate"]
    rows: list[Sequence[object]] = [
        (w.workload, _serves(w), w.recognised or "-", _state(w), w.certificate or "-") for w in answer.rows
    ]
    if output == "wide":
        columns.append("identity")
        rows = [(*row, w.identity) for row, w in zip(rows, answer.rows, strict=True)]
    show(output, answer, columns, rows, "no workload is registered on this node (`culvert apply -f FILE`)")
    if output != "json":
        for problem in answer.problems:
            note(f"problem: {problem}")


@click.command(name="certificates")
@_formats
@socket_option
def certificates(output: str, path: Path | None) -> None:
    """Show the certificates this machine holds, its own first. Times are UTC.

    \b
    culvert certificates
    """
    answer = ask(path, "certificates", CertificatesAnswer)
    domains = {_domain(row.identity) for row in answer.rows}
    domain = domains.pop() if len(domains) == 1 and output == "table" else ""
    if domain:
        click.echo(f"identities of spiffe://{domain}/")
    rows = [
        (
            row.identity.removeprefix(f"spiffe://{domain}/") if domain else row.identity,
            row.status,
            row.serial[:8] if output == "table" else row.serial,
            _date(row.not_after),
            _date(row.not_before),
        )
        for row in answer.rows
    ]
    show(output, answer, ["identity", "status", "serial", "not after", "not before"], rows)
    if output != "json":
        for row in answer.rows:
            if row.reason:
                note(f"problem: {row.identity}: {row.reason}")


@click.command(name="connections")
@_formats
@click.option("--live", is_flag=True, help="Only those that are open now.")
@click.option("--last", type=click.IntRange(min=0), default=RECENT, show_default=True, help="How many closed ones.")
@click.option("--pre-enrolment", "earlier", is_flag=True, help="Those that bypass the agent, older than enrolment.")
@click.option("--cut", is_flag=True, help="End them; programs that connect again are captured.")
@socket_option
def connections(output: str, live: bool, last: int, earlier: bool, cut: bool, path: Path | None) -> None:
    """Show who talks to whom: live connections, then the last closed ones.

    -o wide adds identities and addresses. Connections that were there before
    enrolment go on as they were, in clear; --pre-enrolment lists them.

    \b
    culvert connections
    culvert connections --live -o wide
    culvert connections --pre-enrolment
    culvert connections --pre-enrolment --cut
    """
    if cut and not earlier:
        raise click.UsageError("--cut goes with --pre-enrolment: connections in the mesh are ended by policy")
    if earlier:
        _show_earlier(output, path, cut=cut)
        return
    answer = ask(path, "connections", ConnectionsAnswer)
    closed = [] if live or not last else answer.closed[-last:]
    answer = ConnectionsAnswer(answer.live, closed, answer.dropped)
    columns = ["source", "destination", "way", "security", "sent", "recv", "age", "verdict"]
    if output == "wide":
        columns[:2] = ["source", "identity", "from", "destination", "identity", "to"]
    now = time.time()
    rows = [_connection(c, now, wide=output == "wide") for c in (*answer.live, *answer.closed)]
    show(output, answer, columns, rows, "no connections yet")
    if answer.dropped and output != "json":
        note(f"{answer.dropped} records of closed connections were lost: the node was too busy to keep them")


def _show_earlier(output: str, path: Path | None, *, cut: bool) -> None:
    if cut:
        answer = order(path, "pre-enrolment/cut", EarlierAnswer)
    else:
        answer = ask(path, "pre-enrolment", EarlierAnswer)
    columns = ["workload", "way", "local", "remote", "process"]
    rows = [(r.workload, r.way, r.local, r.remote, r.process or "-") for r in answer.rows]
    show(output, answer, columns, rows, "no connection of a captured workload is older than its enrolment")
    if output != "json":
        if answer.rows:
            note(f"{len(rows)} ended" if cut else "--cut ends them; programs that connect again are captured")
        for problem in answer.problems:
            note(f"problem: {problem}")
    if cut and answer.problems:
        sys.exit(1)


@click.command(name="tunnels")
@_formats
@socket_option
def tunnels(output: str, path: Path | None) -> None:
    """Show the mTLS tunnels to and from other agents.

    \b
    culvert tunnels
    """
    answer = ask(path, "tunnels", TunnelsAnswer)
    now = time.time()
    wide = output == "wide"
    rows = [
        (
            t.local_identity if wide else _short(t.local_identity),
            t.peer_identity if wide else _short(t.peer_identity),
            t.peer_address,
            "out" if t.direction.value == "outbound" else "in",
            t.streams,
            t.carried,
            size(t.sent),
            size(t.received),
            ago(now - t.opened),
            t.state,
        )
        for t in answer.rows
    ]
    columns = ["local", "peer", "address", "way", "open", "all", "sent", "recv", "age", "state"]
    show(output, answer, columns, rows, "no tunnels now; they open with the first connection and close when idle")


def _connection(c: Connection, now: float, *, wide: bool) -> tuple[object, ...]:
    verdict = c.verdict.value if c.state == "closed" or c.verdict.value != "allowed" else c.state
    tail = (
        "out" if c.direction.value == "outbound" else "in",
        c.security.value,
        size(c.sent),
        size(c.received),
        ago(now - c.opened),
        f"{verdict}: {c.reason}" if c.reason else verdict,
    )
    if wide:
        return (*_all(c.source), *_all(c.destination), *tail)
    return (_who(c.source), _who(c.destination, port=True), *tail)


def _who(party: Party, *, port: bool = False) -> str:
    if not party.workload:
        return (party.address if port else party.address.rpartition(":")[0]) or "-"
    return f"{party.workload}:{party.address.rpartition(':')[2]}" if port else party.workload


def _all(party: Party) -> tuple[str, str, str]:
    return party.workload or "-", party.identity or "-", party.address or "-"


def _serves(w: WorkloadRow) -> str:
    if not w.endpoints:
        return "-"
    address = w.endpoints[0].rpartition(":")[0]
    return f"{address}:{','.join(e.rpartition(':')[2] for e in w.endpoints)}"


def _state(w: WorkloadRow) -> str:
    if w.captured:
        return "captured"
    return "enrolled, not captured" if w.enrolled else "not enrolled"


def _domain(identity: str) -> str:
    return identity.removeprefix("spiffe://").partition("/")[0]


def _short(identity: str) -> str:
    """`shop/web` of spiffe://TD/ns/shop/sa/web."""
    match identity.removeprefix("spiffe://").split("/"):
        case [_, "ns", namespace, "sa", account]:
            return f"{namespace}/{account}"
    return identity


def _date(unix: float) -> str:
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M}" if unix else "-"
