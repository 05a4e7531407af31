"""culvert ca: what the mesh trusts, and what it does so no longer."""

import re
from datetime import UTC, datetime
from pathlib import Path

import click
import msgspec

from agent.cli.calls import call, credential_option
from agent.cli.output import Refused, ago, note, output_option, show, warn
from ca.client import Client, Refusal
from ca.contract import ApplyRequest, ApplyResponse, DeleteRequest, ResourceName
from ca.duration import Duration
from ca.identity import Identity, IdentityError, NodeIdentity, OperatorIdentity, WorkloadIdentity, parse
from ca.resources.kinds import decode_known, encode
from ca.resources.mesh import Mesh
from ca.resources.metadata import Metadata
from ca.resources.revocation import (
    Revocation,
    RevocationSpec,
    canonical_serial,
    revocation_name,
    write_time,
)
from ca.revoking import restored

_WHOLE = 30
"""Hex digits that a serial has at least: it is made of 159 random bits, so one in a million million is shorter."""

_WHAT = click.Choice(["workload", "node", "operator", "identity", "serial"])


@click.group()
def ca() -> None:
    """See when certificates end; revoke what was stolen or lost.

    \b
    culvert ca revoke workload shop/web --reason "key seen on a pastebin"
    culvert ca revoke node db-1
    culvert ca status
    """


@ca.command()
@click.argument("what", type=_WHAT)
@click.argument("name")
@click.option("--reason", default="", help="Stands in every refusal.")
@credential_option
def revoke(what: str, name: str, reason: str, credential: Path | None) -> None:
    """Distrust it from now on: every node refuses it and ends what it has open.

    WHAT is workload (NAME is namespace/service-account), node, operator, identity (a spiffe:// URI) or serial (hex, all
    of it, as culvert certificates -o json shows it). A revoked identity gets no certificate any more, and those it had
    are revoked with it, for a node those of its workloads too. Who held a revoked serial gets a new certificate at
    once.

    \b
    culvert ca revoke workload shop/web --reason "key seen on a pastebin"
    culvert ca revoke serial 5EEE80D4A1B0C4D7F2E86152AC0B94D1E1036F8A
    """

    async def put(client: Client) -> tuple[ApplyResponse, bool]:
        target = _target(what, name, await _trust_domain(client))
        if isinstance(target, str) and len(target) < _WHOLE:
            raise Refused(f"serial {name} is only a part of one: copy all of it from culvert certificates -o json")
        now = write_time(datetime.now(UTC))
        if isinstance(target, str):
            spec = RevocationSpec(serials=(target,), reason=reason, time=now)
        else:
            spec = RevocationSpec(identity=str(target), reason=reason, time=now)
        revocation = Revocation(Metadata(revocation_name(target)), spec)
        response = await client.apply(ApplyRequest([msgspec.Raw(encode(revocation))]))
        try:
            kept = decode_known((await client.list("Revocation", "", revocation.metadata.name)).items)
        except Refusal:
            return response, True  # of an operator who has revoked himself
        return response, any(isinstance(r, Revocation) and r.spec.serials for r in kept)

    response, concerned = call(credential, put)
    click.echo(f"{what} {name} revoked")
    if not concerned:
        warn(f"the centre has no certificate of {what} {name} on record: is that its name? see culvert ca status")
    note(f"revision {response.revision}; undo it with: culvert ca unrevoke {what} {name}")


@ca.command()
@click.argument("what", type=_WHAT)
@click.argument("name")
@click.option("--restore", is_flag=True, help="Also what was issued before: it was revoked by mistake.")
@credential_option
def unrevoke(what: str, name: str, restore: bool, credential: Path | None) -> None:
    """Let an identity be used again, with new certificates.

    Those it had when it was revoked stay revoked: whoever copied one still has it. Workloads get theirs by themselves,
    a node joins again with a new token. With --restore nothing stays revoked, as after culvert delete revocation.

    \b
    culvert ca unrevoke workload shop/web
    culvert ca unrevoke node db-1 --restore
    """

    async def undo(client: Client) -> tuple[ApplyResponse, int]:
        target = _target(what, name, await _trust_domain(client))
        key = revocation_name(target)
        found = [r for r in decode_known((await client.list("Revocation", "", key)).items) if isinstance(r, Revocation)]
        if not found:
            raise Refused(f"{what} {name} is not revoked; see culvert get revocations")
        rest = None if restore else restored(found[0])
        if rest is None:
            return await client.delete(DeleteRequest([ResourceName("Revocation", key)])), 0
        return await client.apply(ApplyRequest([msgspec.Raw(encode(rest))])), len(rest.spec.serials)

    response, kept = call(credential, undo)
    click.echo(f"{what} {name} trusted again")
    if kept:
        note(f"{kept} certificates issued before stay revoked until they end")
        if what == "node":
            note(
                f"next: culvert central token create --node {name}, and on it: culvert agent join --force TOKEN, "
                "and restart its agent"
            )
    note(f"revision {response.revision}")


@ca.command()
@click.option("--limit", type=click.IntRange(0, 10_000), default=20, show_default=True, help="How many certificates.")
@output_option()
@credential_option
def status(limit: int, output: str, credential: Path | None) -> None:
    """Show what ends when, the nearest end first: roots, issuing certificates, nodes, workloads.

    Exit code 1 if any of them should have been renewed by now, has ended, or could not be made.

    \b
    culvert ca status
    culvert ca status -o json
    """
    trust = call(credential, lambda client: client.trust(limit))
    if output == "table":
        counts = ", ".join(_many(c.good + c.late + c.ended, _KINDS.get(c.what, c.what)) for c in trust.counts)
        late, ended = sum(c.late for c in trust.counts), sum(c.ended for c in trust.counts)
        click.echo(f"certificates of {counts}")
        click.echo(f"{late} overdue, {ended} ended; {_many(trust.revocations, 'revocation')}")
        click.echo(f"workloads' certificates live {Duration(trust.workload_life)}")
        for alarm in trust.alarms:
            warn(alarm)
    rows = [
        [_left(c.not_after - trust.time), c.what, _short(c.title), _date(c.not_after), _STANDING[c.standing]]
        for c in trust.certificates
    ]
    show(output, trust, ["left", "what", "which", "ends", "state"], rows, empty="no certificates yet")
    total = sum(c.good + c.late + c.ended for c in trust.counts)
    if output == "table" and total > len(rows):
        note(f"{total - len(rows)} more end later: culvert ca status --limit {total}")
    if trust.alarms:
        raise SystemExit(1)


_KINDS = {"issuing": "issuer"}
_STANDING = {"good": "good", "late": "overdue", "ended": "ended"}


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _left(seconds: float) -> str:
    return ago(seconds) if seconds > 0 else "none"


def _short(title: str) -> str:
    """Without the trust domain, which all share."""
    return re.sub(r"^spiffe://[^/]+/ns/([^/]+)/sa/", r"\1/", title)


def _date(unix: float) -> str:
    return f"{datetime.fromtimestamp(unix, UTC):%Y-%m-%d %H:%M}Z"


async def _trust_domain(client: Client) -> str:
    for mesh in decode_known((await client.list("Mesh")).items):
        if isinstance(mesh, Mesh):
            return mesh.spec.trust_domain
    raise Refused("the centre has no Mesh: culvert central init makes one")


def _target(what: str, name: str, domain: str) -> Identity | str:
    """The identity, or the serial, that is meant."""
    try:
        match what:
            case "serial":
                return canonical_serial(name)
            case "identity":
                return parse(name)
            case "node":
                return NodeIdentity(domain, name)
            case "operator":
                return OperatorIdentity(domain, name)
        namespace, slash, account = name.partition("/")
        if not slash:
            raise click.UsageError(f"{name!r}: a workload's identity is NAMESPACE/SERVICE-ACCOUNT, as in shop/web")
        return WorkloadIdentity(domain, namespace, account)
    except (IdentityError, ValueError) as error:
        raise Refused(str(error)) from error
