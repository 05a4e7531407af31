"""culvert apply, get, label, delete, schema: what the mesh should be."""

import sys
from collections.abc import Iterable
from pathlib import Path

import click
import msgspec

from agent.cli import tables
from agent.cli.calls import call, credential_option
from agent.cli.output import Refused, note, output_option, show
from ca.client import Client, Refusal
from ca.contract import MAX_BODY, ApplyRequest, ApplyResponse, DeleteRequest, LabelRequest, ResourceName
from ca.hints import did_you_mean
from ca.resources import documents
from ca.resources.documents import Placed
from ca.resources.kinds import KINDS, Resource, decode_known, encode, json_schema
from ca.resources.metadata import Key

_WORDS = {
    **{k.lower(): k for k in KINDS},
    **{k.lower() + "s": k for k in KINDS if k != "Mesh" and not k.endswith("y")},
    **{k.lower()[:-1] + "ies": k for k in KINDS if k.endswith("y")},
}


class _KindType(click.ParamType[str]):
    name = "kind"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The kind that a word means."""
        kind = _WORDS.get(value.lower())
        if kind is None:
            self.fail(f"{value!r} is no kind{did_you_mean(value, _WORDS)}", param, ctx)
        return kind


_KIND = _KindType()
_file_option = click.option(
    "-f", "--file", "files", multiple=True, metavar="FILE|DIR|-", help="YAML; a directory's *.yaml; - for stdin."
)


@click.command()
@_file_option
@click.option("--dry-run", is_flag=True, help="Check everything, change nothing.")
@credential_option
def apply(files: tuple[str, ...], dry_run: bool, credential: Path | None) -> None:
    """Make the mesh as FILE says: all of it, or nothing.

    \b
    culvert apply -f shop.yaml
    culvert apply -f mesh/ --dry-run
    """
    placed = _read(files)
    resources = [p.resource for p in placed]
    request = ApplyRequest([msgspec.Raw(encode(r)) for r in resources], dry_run)
    if (size := sum(len(memoryview(r)) for r in request.resources)) > MAX_BODY * 0.9:
        raise Refused(f"{size} bytes of objects are more than one call holds ({MAX_BODY}): apply the files one by one")

    async def put(client: Client) -> ApplyResponse:
        try:
            return await client.apply(request)
        except Refusal as e:
            raise Refused(_placed(str(e), placed)) from e

    response = call(credential, put)
    _report(response, [str(r.key) for r in resources], "would change" if dry_run else "applied", dry_run)


@click.command()
@click.argument("kind", type=_KIND)
@click.argument("name", required=False)
@click.option("-n", "--namespace", default="", help="Only of this namespace.")
@output_option("table", "yaml", "json")
@credential_option
def get(kind: str, name: str | None, namespace: str, output: str, credential: Path | None) -> None:
    """List objects of one kind.

    KIND is workloads, nodes, mesh, authorizationpolicies, peerauthentications
    or revocations.

    \b
    culvert get workloads -n shop
    culvert get workload shop/web -o yaml
    """
    place, only = _split(name or "", namespace)
    listing = call(credential, lambda client: client.list(kind, place, only))
    found = list(decode_known(listing.items))
    if name and not found:
        others = decode_known(call(credential, lambda client: client.list(kind)).items)
        asked = str(Key(kind, place, only))
        hint = did_you_mean(asked, (str(r.key) for r in others)) or f"; see culvert get {kind.lower()}"
        raise Refused(f"{asked}: there is none{hint}")
    if output == "yaml":
        click.echo(documents.to_yaml(found), nl=False)
    else:
        mesh = None
        if kind == "Workload" and output == "table":
            mesh = next(decode_known(call(credential, lambda client: client.list("Mesh")).items), None)
        columns, rows = tables.resources(kind, found, mesh)
        where = f" in namespace {place}" if place else ""
        show(output, found, columns, rows, empty=f"there is no {kind.lower()}{where}")


@click.command()
@click.argument("kind", type=_KIND)
@click.argument("name", metavar="[NS/]NAME")
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
@credential_option
def label(kind: str, name: str, changes: tuple[str, ...], credential: Path | None) -> None:
    """Set labels (KEY=VALUE) or take them away (KEY-).

    What the mesh's enrolment selector matches is enrolled at once.

    \b
    culvert label workload shop/web mesh=on
    culvert label workload shop/web mesh-
    """
    labels: dict[str, str | None] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals and not key.endswith("-"):
            raise click.BadParameter(f"{change!r} is neither KEY=VALUE nor KEY-", param_hint="CHANGES")
        labels[key if equals else key[:-1]] = value if equals else None
    request = LabelRequest(_name(kind, name), labels)
    response = call(credential, lambda client: client.label(request))
    _report(response, [_title(request.resource)], "labelled")


@click.command()
@click.argument("kind", type=_KIND, required=False)
@click.argument("names", nargs=-1, metavar="[NS/]NAME...")
@_file_option
@credential_option
def delete(kind: str | None, names: tuple[str, ...], files: tuple[str, ...], credential: Path | None) -> None:
    """Delete objects, by name or those that a file holds: all of them, or none.

    \b
    culvert delete workload shop/web
    culvert delete -f shop.yaml
    """
    if bool(files) == bool(kind) or bool(kind) != bool(names):
        raise click.UsageError("give either KIND and NAME, or -f FILE")
    gone = [_name(kind, n) for n in names] if kind else [_named(p.resource) for p in _read(files)]
    response = call(credential, lambda client: client.delete(DeleteRequest(gone)))
    _report(response, [_title(n) for n in gone], "deleted")


@click.command()
def schema() -> None:
    """Print the JSON Schema of every kind, for editors.

    \b
    culvert schema > culvert.schema.json
    """
    click.echo(msgspec.json.format(msgspec.json.encode(json_schema())).decode())


def _read(files: Iterable[str]) -> list[Placed]:
    """The objects of the files; Refused with every fault in them."""
    sources: list[tuple[str, str]] = []
    for file in files:
        if file == "-":
            sources.append(("stdin", sys.stdin.read()))
            continue
        path = Path(file)
        paths = sorted(p for p in path.rglob("*") if p.suffix in (".yaml", ".yml")) if path.is_dir() else [path]
        if not paths:
            raise Refused(f"{path}: holds no *.yaml")
        sources += [(str(p), _text(p)) for p in paths]
    if not sources:
        raise click.UsageError("give -f FILE")
    try:
        return documents.read(sources)
    except documents.DocumentError as e:
        raise Refused(f"nothing was changed:\n{e}") from e


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as e:
        raise Refused(f"{path}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise Refused(f"{path}: is no text in UTF-8: {e.reason} at byte {e.start}") from e


def _placed(complaints: str, placed: Iterable[Placed]) -> str:
    """The centre's complaints, one a line, with the file and line of the object that each is about."""
    lines = []
    for complaint in complaints.splitlines():
        about = next((p for p in placed if complaint.startswith(f"{p.resource.key}: ")), None)
        lines.append(about.place(complaint) if about else complaint)
    return "\n".join(["nothing was changed:", *lines])


def _report(response: ApplyResponse, titles: list[str], done: str, dry_run: bool = False) -> None:
    changed = set(response.changed)
    for title in titles:
        click.echo(f"{title} {done if title in changed else 'unchanged'}")
    note(f"revision {response.revision}" + (", nothing was changed" if dry_run else ""))


def _split(name: str, namespace: str) -> tuple[str, str]:
    place, slash, only = name.rpartition("/")
    if slash and namespace and place != namespace:
        raise click.UsageError(f"{name} is not in namespace {namespace}")
    return place or namespace, only


def _name(kind: str, name: str) -> ResourceName:
    place, _, only = name.rpartition("/")
    if kind == "Workload" and not place:
        raise click.UsageError(f"{name!r}: a workload is named NAMESPACE/NAME, as in shop/web")
    return ResourceName(kind, only, place)


def _named(resource: Resource) -> ResourceName:
    return ResourceName(resource.key.kind, resource.key.name, resource.key.namespace)


def _title(name: ResourceName) -> str:
    return f"{name.kind.lower()} {name.namespace}/{name.name}" if name.namespace else f"{name.kind.lower()} {name.name}"
