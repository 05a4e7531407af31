"""culvert explain: why two workloads can, or cannot, talk."""

from pathlib import Path
from typing import TypeVar

import click
import msgspec

from agent.answers import (
    CaptureAnswer,
    CertificatesAnswer,
    ConnectionsAnswer,
    StatusAnswer,
    TunnelsAnswer,
    WorkloadsAnswer,
)
from agent.cli.calls import call, credential_option
from agent.cli.ends import destination_end, source_workload
from agent.cli.output import output_option, plain
from agent.explain import Known, NodeFacts
from agent.explain import explain as follow
from ca.client import Client
from ca.resources.kinds import decode_known

_A = TypeVar("_A", bound=msgspec.Struct)
_TICKS = {"ok": "✓", "fail": "✗", "unknown": "?"}


@click.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST:PORT")
@output_option("text", "json")
@credential_option
def explain(source: str, destination: str, output: str, credential: Path | None) -> None:
    """Follow a connection from SRC to DST:PORT, hop by hop, and say where it fails.

    SRC and DST are workloads or their addresses. Nothing is dialled: the centre and both nodes are asked. Exit status
    0: nothing stands against it, 1: a hop fails, and is the last one printed.

    \b
    culvert explain shop/web shop/db:5432
    culvert explain 10.0.0.5 10.0.0.7:5432 -o json
    """

    async def gather(client: Client) -> Known:
        listing = await client.list("")
        status = await client.status()
        known = Known(listing.revision, list(decode_known(listing.items)), {n.name: n for n in status.nodes})
        view = known.view("")
        wanted, _, _ = destination_end(view, destination)
        nodes = {source_workload(view, source).spec.node, *([wanted.spec.node] if wanted else [])}
        for node in nodes:
            known.facts[node] = await _ask(client, node)
        return known

    known = call(credential, gather)
    view = known.view("")
    _, address, port = destination_end(view, destination)
    hops = follow(known, source_workload(view, source), address, port)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(hops)).decode())
    else:
        for hop in hops:
            click.echo(plain(f"{_TICKS[hop.state]} {hop.name}: {hop.about}"))
            click.echo(plain(f"    {hop.text}"))
    if any(hop.state == "fail" for hop in hops):
        raise SystemExit(1)


async def _ask(client: Client, node: str) -> NodeFacts:
    async def topic(name: str, kind: type[_A]) -> _A | None:
        answer = await client.ask(node, name)
        if answer.error:
            errors.append(answer.error)
            return None
        return msgspec.json.decode(answer.body, type=kind)

    errors: list[str] = []
    status, workloads = await topic("status", StatusAnswer), await topic("workloads", WorkloadsAnswer)
    certificates, capture = await topic("certificates", CertificatesAnswer), await topic("capture", CaptureAnswer)
    tunnels, connections = await topic("tunnels", TunnelsAnswer), await topic("connections", ConnectionsAnswer)
    error = errors[0] if errors else ""
    return NodeFacts(error, status, workloads, certificates, capture, tunnels, connections)
