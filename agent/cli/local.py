"""How commands ask the agent of this machine."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec
import trio

from agent.answers import Done
from agent.cli.output import Refused
from agent.settings import AgentSettings, load_settings
from ca.contract import Problem
from ca.http import HttpError, Response, request
from ca.settings import SettingsError

_S = TypeVar("_S", bound=msgspec.Struct)
_F = TypeVar("_F", bound=Callable[..., Any])

WITHIN = 30.0
"""Seconds for an answer."""


class NoAgent(Refused):
    """No agent answers on this machine; the message says why and what to do."""


def socket_option(command: _F) -> _F:
    """The option --socket, passed on as `path`."""
    return click.option(
        "--socket",
        "path",
        type=click.Path(path_type=Path),
        envvar="CULVERT_SOCKET",
        help="The agent's admin socket; also $CULVERT_SOCKET.  [default: /run/culvert/agent.sock]",
    )(command)


def ask(path: Path | None, topic: str, answer: type[_S]) -> _S:
    """What the agent says to GET /v1/TOPIC; Refused, NoAgent."""
    return _decoded(_call(path, "GET", topic), answer)


def tell(path: Path | None, command: str, body: msgspec.Struct | None = None) -> str:
    """Have the agent carry out POST /v1/COMMAND, with this body; what it says then. Refused, NoAgent."""
    return _decoded(_call(path, "POST", command, body), Done).message


def order(path: Path | None, command: str, answer: type[_S]) -> _S:
    """Have the agent carry out POST /v1/COMMAND, which answers with more than a word. Refused, NoAgent."""
    return _decoded(_call(path, "POST", command), answer)


def socket_path(given: Path | None) -> Path:
    """Where the agent of this machine answers."""
    if given:
        return given
    try:
        return load_settings(os.environ).settings.admin_socket
    except SettingsError as error:
        raise Refused(str(error)) from error


def _call(given: Path | None, method: str, name: str, order: msgspec.Struct | None = None) -> Response:
    body = msgspec.json.encode(order) if order else b""
    path = socket_path(given)

    async def call() -> Response:
        with trio.fail_after(WITHIN):
            async with await trio.open_unix_socket(path) as stream:
                return await request(stream, method, f"/v1/{name}", host="agent", body=body, max_body=2**28)

    try:
        return trio.run(call)
    except OSError as error:
        if error.errno == errno.ECONNREFUSED and not path.is_socket():
            raise Refused(f"{path} is no socket; name that of the agent with --socket or $CULVERT_SOCKET") from error
        raise NoAgent(f"no agent answers at {path}: {_why(error)}") from error
    except (HttpError, trio.BrokenResourceError) as error:
        raise Refused(f"the agent at {path} broke off: {error}; its log says more") from error
    except trio.TooSlowError as error:
        raise Refused(f"the agent at {path} did not answer within {WITHIN:.0f} s; its log may say why") from error


def _why(error: OSError) -> str:
    start = "start it with `systemctl start culvert-agent` or `culvert agent run`, or name its socket with --socket"
    match error.errno:
        case errno.ENOENT:
            return f"there is no such socket; {start}"
        case errno.ECONNREFUSED:
            return f"the one that made this socket is gone; {start}"
        case errno.EACCES | errno.EPERM:
            return "only root may ask; try with sudo"
    return f"{error.strerror}; {start}"


def _decoded(response: Response, answer: type[_S]) -> _S:
    try:
        if response.status == 200:
            return msgspec.json.decode(response.body, type=answer)
        raise Refused(msgspec.json.decode(response.body, type=Problem).message)
    except msgspec.MsgspecError as error:
        said = response.body[:300].decode("utf-8", "replace").strip()
        raise Refused(f"the agent answers {response.status}: {said or error}; is it of another version?") from error


def agent_settings(config: Path | None, flags: dict[str, Any]) -> AgentSettings:
    """The settings of this machine's agent, with the flags of a command. Refused."""
    try:
        return load_settings(os.environ, flags, config).settings
    except SettingsError as error:
        raise Refused(str(error)) from error
