"""Starting a mesh, and opening one that was started: what `culvert central` does before any task runs. Blocks."""

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from ca import credential, endpoint, registry, x509
from ca.authority import Authority, Chain
from ca.central import OPERATOR_FILE, OWN_FILE, CentralSettings
from ca.contract import DEFAULT_PORT
from ca.credential import Credential
from ca.identity import OperatorIdentity, check_name, check_trust_domain
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Metadata
from ca.settings import written
from ca.store import NOTHING, StoreError
from ca.store.sqlite import SqliteStore


def found(settings: CentralSettings, trust_domain: str, operator: str) -> Path:
    """Make a mesh in `settings.dir`: root, issuing key, store, Mesh object, `central.toml` and an operator's
    credential, whose path is returned. StoreError if something is there already; IdentityError for bad names."""
    check_trust_domain(trust_domain)
    check_name(operator, "operator")
    address = advertised(settings)
    path = settings.dir / OPERATOR_FILE
    for existing in (path, settings.dir / OWN_FILE):
        if existing.exists():
            raise StoreError(f"{existing} exists: choose another --dir, or remove the mesh in this one first")
    now = datetime.now(UTC)
    settings.dir.mkdir(parents=True, exist_ok=True)
    with SqliteStore.open(settings.dir, create=True) as store:
        mesh = Mesh(metadata=Metadata("mesh"), spec=MeshSpec(trust_domain))
        outcome = registry.change(registry.State(store.meta()["incarnation"]), [mesh])
        # One commit: killed before it, there is no mesh, and after it a whole one.
        along = outcome.batch or NOTHING
        authority = Authority.create(store, store.keys, trust_domain, now, settings.lives.lives(), along)
        credential.save(path, _sign(authority, operator, address, now))
    (settings.dir / OWN_FILE).write_text(
        "# Written by culvert central init; /etc/culvert/central.toml overrides it.\n"
        f"listen = {written(settings.listen)}\nadvertise = {written(address)}\n"
    )
    return path


@contextmanager
def opened(settings: CentralSettings) -> Iterator[tuple[SqliteStore, Authority]]:
    """The store and the authority of the mesh in `settings.dir`. StoreError."""
    with SqliteStore.open(settings.dir) as store:
        yield store, Authority.open(store, store.keys, settings.lives.lives())


def operator_offline(settings: CentralSettings, name: str) -> Credential:
    """A credential for an operator, made while no centre runs. StoreError if one does, IdentityError, Refused."""
    check_name(name, "operator")
    with opened(settings) as (_, authority):
        return _sign(authority, name, advertised(settings), datetime.now(UTC))


def advertised(settings: CentralSettings) -> str:
    """HOST:PORT at which others reach the centre: as set, else where it listens, else this machine's first address."""
    if settings.advertise:
        return settings.advertise
    host, port = endpoint.split(settings.listen)
    try:
        everywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        everywhere = False
    return endpoint.join(_own_address() if everywhere else host, port or DEFAULT_PORT)


def new_credential(name: str, trust_domain: str, address: str, chain: Chain, key: bytes, roots: bytes) -> Credential:
    """Put a credential together."""
    return Credential(address, trust_domain, name, x509.pem(*chain).decode(), key.decode(), roots.decode())


def replaced(path: Path, name: str) -> str:
    """Why `path` must not be overwritten by a credential for `name`; empty if it may be."""
    if not path.exists():
        return ""
    try:
        known = credential.load(path)
    except credential.CredentialError as e:
        return f"{path} exists and is something else ({e})"
    return "" if known.name == name else f"{path} is the credential of operator {known.name}"


def _sign(authority: Authority, name: str, address: str, now: datetime) -> Credential:
    key = x509.new_key()
    csr = x509.make_csr(key, OperatorIdentity(authority.trust_domain, name))
    chain = authority.sign_operator(name, csr, now)
    return new_credential(name, authority.trust_domain, address, chain, x509.key_pem(key), x509.pem(*authority.roots))


def _own_address() -> str:
    """The source address of the default route; connecting a UDP socket sends nothing."""
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            try:
                s.connect((target, 9))
                return str(s.getsockname()[0])
            except OSError:
                continue
    return "127.0.0.1"
