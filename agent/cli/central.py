"""culvert central: the centre, and what is asked of it at its own machine."""

import os
from pathlib import Path
from typing import Any

import click
import trio

from agent.cli import logs, tables
from agent.cli.calls import call, credential_option, run
from agent.cli.output import Refused, note, output_option, show, warn
from ca import credential as credentials
from ca import founding, x509
from ca.authority import Refused as NotSigned
from ca.central import OPERATOR_FILE, CentralSettings, load_central
from ca.client import Client
from ca.contract import TokenRequest
from ca.duration import Duration
from ca.identity import IdentityError, OperatorIdentity, check_name
from ca.resources.node import Discovery
from ca.settings import SettingsError
from ca.store import StoreError


class _DurationType(click.ParamType[Duration]):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Duration:
        """As in 90s, 10m, 24h."""
        try:
            return Duration.read(value)
        except ValueError as e:
            self.fail(str(e), param, ctx)


_dir_option = click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    help="The centre's directory.  [default: /var/lib/culvert/central]",
)


@click.group()
def central() -> None:
    """The centre: the CA and registry of one mesh.

    \b
    culvert central init --trust-domain shop.example --listen 10.0.0.1:15012
    culvert central run
    culvert central token create --node web-1
    culvert central status
    """


@central.command()
@click.option("--trust-domain", required=True, help="The name every identity carries; it can never change.")
@_dir_option
@click.option("--listen", metavar="HOST:PORT", help="Where to listen.  [default: 0.0.0.0:15012]")
@click.option("--advertise", metavar="HOST:PORT", help="How nodes reach it, if not where it listens.")
@click.option("--operator", default="admin", show_default=True, help="Name of the first operator.")
def init(trust_domain: str, directory: Path | None, listen: str | None, advertise: str | None, operator: str) -> None:
    """Start a mesh: root and issuing key, store, first operator.

    \b
    culvert central init --trust-domain shop.example --listen 10.0.0.1:15012
    """
    settings = _settings(None, {"dir": directory, "listen": listen, "advertise": advertise})
    try:
        path = founding.found(settings, trust_domain, operator)
    except (StoreError, IdentityError, ValueError) as e:
        raise Refused(str(e)) from e
    except OSError as e:
        raise Refused(f"{e.filename or settings.dir}: cannot be written: {e.strerror}") from e
    click.echo(f"mesh {trust_domain} is in {settings.dir}; nodes reach its centre at {founding.advertised(settings)}")
    click.echo(f"operator {operator} has the credential {path} (0600)")
    note(f"next: culvert central run --dir {settings.dir}")


@central.command(name="run")
@_dir_option
@click.option("--listen", metavar="HOST:PORT", help="Where to listen.")
@click.option("--advertise", metavar="HOST:PORT", help="What join tokens carry.")
@click.option("--config", type=click.Path(path_type=Path), help="Settings.  [default: /etc/culvert/central.toml]")
@click.option("--log-level", help="debug, info, warning or error.")
def run_(
    directory: Path | None, listen: str | None, advertise: str | None, config: Path | None, log_level: str | None
) -> None:
    """Run the centre until SIGTERM.

    \b
    culvert central run
    culvert central run --listen 10.0.0.1:15012
    """
    from ca import server  # the centre's tasks; the other commands do without

    settings = _settings(config, {"dir": directory, "listen": listen, "advertise": advertise, "log_level": log_level})
    logs.configure(settings.log_level)
    try:
        with founding.opened(settings) as (store, authority):
            trio.run(server.run, settings, store, authority, founding.advertised(settings))
    except (StoreError, server.ListenError) as e:
        raise Refused(str(e)) from e


@central.group()
def token() -> None:
    """Join tokens: how a machine becomes a node.

    \b
    culvert central token create --node web-1 --ttl 10m
    """


@token.command()
@click.option("--node", required=True, help="The name the new node will have.")
@click.option("--ttl", type=_DurationType(), default="10m", show_default=True, help="How long it can be used.")
@click.option("--allow-namespace", "namespaces", multiple=True, metavar="NAME", help="Of workloads it may register.")
@click.option("--allow-service-account", "accounts", multiple=True, metavar="NAME", help="In those; none: any.")
@click.option("--allow-address", "addresses", multiple=True, metavar="CIDR", help="Of containers it may register.")
@credential_option
def create(
    node: str,
    ttl: Duration,
    namespaces: tuple[str, ...],
    accounts: tuple[str, ...],
    addresses: tuple[str, ...],
    credential: Path | None,
) -> None:
    """Make a token that joins one node, once. Prints only the token.

    With --allow-... the node may register by itself what it finds with a label
    (files, units, containers, users). Change it later in the Node's
    spec.discovery.

    \b
    culvert central token create --node web-1 --ttl 10m
    culvert central token create --node web-1 --allow-namespace shop
    """
    try:
        may = Discovery(namespaces, accounts, addresses) if namespaces or accounts or addresses else None
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    response = call(credential, lambda client: client.create_token(TokenRequest(node, float(ttl), may)))
    click.echo(response.token)
    note(f"good for {ttl}, once; on {node}: culvert agent join TOKEN")


@central.command()
@output_option()
@credential_option
def status(output: str, credential: Path | None) -> None:
    """Show every node, the revision it acts on, and why it lags.

    \b
    culvert central status
    """
    state = call(credential, lambda client: client.status())
    if output == "table":
        nodes = f"{sum(n.connected for n in state.nodes)} of {len(state.nodes)} nodes connected"
        click.echo(f"mesh {state.trust_domain}, revision {state.revision}, {state.workloads} workloads, {nodes}")
        if late := tables.lagging(state):
            click.echo(late)
        for alarm in state.alarms:
            warn(alarm)
    show(output, state, *tables.status(state), empty="no nodes yet: culvert central token create --node NAME")


@central.group()
def operator() -> None:
    """Operators' credentials, made at the centre's own machine.

    \b
    culvert central operator create alice -o alice.json
    culvert central operator renew admin
    """


@operator.command(name="create")
@click.argument("name")
@click.option(
    "-o", "--output", "path", type=click.Path(path_type=Path), help="The file to write.  [default: NAME.json]"
)
@_dir_option
def create_operator(name: str, path: Path | None, directory: Path | None) -> None:
    """Make a credential for a new operator.

    \b
    culvert central operator create alice -o alice.json
    """
    path = path or Path(f"{name}.json")
    if path.exists():
        raise Refused(f"{path} exists; choose another file with -o, or use culvert central operator renew")
    _make(name, path, directory)


@operator.command()
@click.argument("name", default="admin")
@click.option("-o", "--output", "path", type=click.Path(path_type=Path), help="The file.  [default: DIR/operator.json]")
@_dir_option
def renew(name: str, path: Path | None, directory: Path | None) -> None:
    """Replace a credential by one that lives longer.

    \b
    culvert central operator renew admin
    """
    path = path or _settings(None, {"dir": directory}).dir / OPERATOR_FILE
    if why := founding.replaced(path, name):
        raise Refused(f"{why}: choose another file with -o")
    _make(name, path, directory)


def _make(name: str, path: Path, directory: Path | None) -> None:
    """Through the running centre's socket if there is one, else straight from the store."""
    settings = _settings(None, {"dir": directory})
    try:
        check_name(name, "operator")
        made = _through_socket(settings, name) if settings.socket.exists() else None
        credential = made or founding.operator_offline(settings, name)
    except (StoreError, IdentityError, NotSigned) as e:
        raise Refused(str(e)) from e
    except OSError as e:
        raise Refused(f"{e.filename or settings.dir}: {e.strerror}") from e
    try:
        credentials.save(path, credential)
    except OSError as e:
        raise Refused(f"{path}: the credential cannot be written: {e.strerror}; choose another file with -o") from e
    click.echo(f"operator {name} has the credential {path} (0600) until {credential.ends:%Y-%m-%d}")


def _through_socket(settings: CentralSettings, name: str) -> credentials.Credential | None:
    """None if nobody serves the socket any more."""
    key = x509.new_key()
    client = Client.at_socket(settings.socket)

    async def ask() -> credentials.Credential | None:
        if not await client.reachable():
            return None
        domain = (await client.status()).trust_domain
        signed = await client.sign_operator(x509.make_csr(key, OperatorIdentity(domain, name)).decode())
        chain = tuple(x509.load_chain(signed.chain.encode()))
        address = founding.advertised(settings)
        return founding.new_credential(name, domain, address, chain, x509.key_pem(key), signed.roots.encode())

    return run(ask)


def _settings(config: Path | None, flags: dict[str, Any]) -> CentralSettings:
    try:
        return load_central(os.environ, flags, config).settings
    except SettingsError as e:
        raise Refused(str(e)) from e
