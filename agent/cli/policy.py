"""culvert policy: what policies would decide, without any traffic."""

from pathlib import Path

import click
import msgspec

from agent.authorize import Authorizer
from agent.cli.calls import call, credential_option
from agent.cli.output import Refused, output_option
from agent.policy import Facts
from agent.snapshot import Snapshot
from ca.client import Client
from ca.hints import did_you_mean
from ca.identity import IdentityError, WorkloadIdentity, parse
from ca.resources.kinds import Resource, decode_known
from ca.resources.workload import Workload


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
    wanted, port = _destination(view, destination)
    identity, address = _source(view, source)
    # Judged as on the node where it would be: policies bear on local workloads only.
    there = Snapshot(wanted.spec.node).apply(revision, objects, [])
    facts = Facts(identity, address, there.address(wanted) or "0.0.0.0", port)
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


def _destination(view: Snapshot, text: str) -> tuple[Workload, int]:
    place, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise click.UsageError(f"DST:PORT is {text!r}: a workload or address and a port, as in shop/db:5432")
    place = place.strip("[]")
    found = [w for w in view.workloads.values() if place in (w.title, view.address(w)) and _serves(w, place, int(port))]
    if len(found) == 1:
        return found[0], int(port)
    if found:
        names = ", ".join(sorted(w.title for w in found))
        raise Refused(f"{text}: several workloads are meant, {names}; name one")
    titles = [w.title for w in view.workloads.values()]
    raise Refused(f"{text}: there is no such workload{did_you_mean(place, titles)}; see culvert get workloads")


def _serves(workload: Workload, place: str, port: int) -> bool:
    """Whether the workload is meant: by name always, by address only at a port it serves."""
    return place == workload.title or port in workload.spec.ports


def _source(view: Snapshot, text: str) -> tuple[WorkloadIdentity | None, str]:
    """(identity, address) of the caller."""
    domain = view.mesh.spec.trust_domain if view.mesh else ""
    for workload in view.workloads.values():
        if workload.title == text:
            if not view.enrolled(workload):
                return None, view.address(workload) or "0.0.0.0"
            return workload.identity(domain), view.address(workload) or "0.0.0.0"
    if text.startswith("spiffe://"):
        try:
            identity = parse(text)
        except IdentityError as error:
            raise Refused(str(error)) from error
        if not isinstance(identity, WorkloadIdentity):
            raise Refused(f"{text} is no workload: only workloads talk to workloads")
        return identity, "0.0.0.0"
    if text.count(".") == 3 or ":" in text:
        return None, text
    titles = [w.title for w in view.workloads.values()]
    raise Refused(f"{text}: neither a workload, an identity nor an address{did_you_mean(text, titles)}")
