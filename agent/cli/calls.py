"""How commands call the centre: which credential, and what its refusals look like."""

import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
import trio

from agent.cli.output import Refused, warn
from ca.central import OPERATOR_FILE, load_central
from ca.client import Client, ClientError
from ca.credential import WARN_BEFORE, Credential, CredentialError, load
from ca.settings import SettingsError

R = TypeVar("R")
_F = TypeVar("_F", bound=Callable[..., Any])


def credential_option(command: _F) -> _F:
    """The option --credential, passed on as `credential`."""
    return click.option(
        "--credential",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="CULVERT_CREDENTIAL",
        help="The operator's credential; also $CULVERT_CREDENTIAL.  [default: operator.json in the centre's directory]",
    )(command)


def find(given: Path | None) -> Credential:
    """The credential that was given, or the one in the centre's directory on this machine; Refused if there is none."""
    try:
        path = given or load_central(os.environ, {}).settings.dir / OPERATOR_FILE
        if given is None and not path.exists():
            raise Refused(
                f"{path}: there is no credential; give --credential FILE, or make one at the centre's machine: "
                "culvert central operator create NAME"
            )
        return load(path)
    except PermissionError as e:
        raise Refused(f"{path}: permission denied; use sudo, or give --credential FILE of your own") from e
    except (CredentialError, SettingsError) as e:
        raise Refused(str(e)) from e


def call(given: Path | None, use: Callable[[Client], Awaitable[R]]) -> R:
    """Run `use` with a client for the credential; Refused with the centre's own words. Warns of a near end."""
    credential = find(given)
    left = (credential.ends - datetime.now(UTC)).total_seconds()
    again = f"renew it at the centre's machine: culvert central operator renew {credential.name}"
    if left <= 0:
        raise Refused(f"the credential of operator {credential.name} ended on {credential.ends:%Y-%m-%d}; {again}")
    if left < WARN_BEFORE:
        warn(f"the credential of operator {credential.name} ends on {credential.ends:%Y-%m-%d}; {again}")
    return run(lambda: use(Client.of_operator(credential)))


def run(use: Callable[[], Awaitable[R]]) -> R:
    """Run `use` under trio; Refused for what the centre, or the way there, said."""
    try:
        return trio.run(use)
    except ClientError as e:
        raise Refused(str(e)) from e
