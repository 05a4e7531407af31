"""culvert policy: what policies would decide, without any traffic."""

from pathlib import Path

import click
import msgspec

from agent.authorize import Authorizer
from agent.cli.calls import call, credential_option
from agent.cli.ends import destination_end, source_end
from agent.cli.output import Refused, output_option
from agent.policy import Facts
from agent.snapshot import Snapshot
from ca.client import Client
from ca.resources.kinds import Resource, decode_known


class Judgement(msgspec.Struct):
    """What `policy check` prints with -o json."""

    source: str
    destination: str
    port: int
    allowed: bool
    reason: str
    would_deny: str


@click.group()
def policy() -> None:
    """Ask what policies decide.

    \b
    culvert policy check shop/web shop/db:5432
    """


@policy.command()
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST:PORT")
@output_option("text", "json")
@credential_option
def check(source: str, destination: str, output: str, credential: Path | None) -> None:
    """Judge a connection without traffic, and name the rule that decides.

    SRC is a workload (shop/web), an identity (spiffe://...), or an IP address that proves nothing. DST is a workload or
    its address. Exit status 0: it would be allowed, 1: it would not.

    \b
    culvert policy check shop/web shop/db:5432
    culvert policy check 192.0.2.7 shop/db:5432
    """

    async def everything(client: Client) -> tuple[int, list[Resource]]:
        listing = await client.list("")
        return listing.revision, list(decode_known(listing.items))

    revision, objects = call(credential, everything)
    view = Snapshot("").apply(revision, objects, [])
    wanted, place, port = destination_end(view, destination)
    if wanted is None:
        raise Refused(f"{destination}: no workload is there; see culvert get workloads")
    identity, address = source_end(view, source)
    # Judged as on the node where it would be: policies bear on local workloads only.
    there = Snapshot(wanted.spec.node).apply(revision, objects, [])
    facts = Facts(identity, address, place, port)
    decision = Authorizer().judge(there, facts, wanted)
    found = Judgement(source, wanted.title, port, decision.allowed, decision.reason, decision.would_deny)
    if output == "json":
        click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
    else:
        word = "allowed" if found.allowed else "refused"
        click.echo(f"{word}: {source} -> {wanted.title} port {port}")
        click.echo(f"  {found.reason or 'no policy stands against it'}")
        if found.would_deny:
            click.echo(f"  dry run: {found.would_deny}")
    if not found.allowed:
        raise SystemExit(1)
