"""The calls of the contract: who may make which, and what each answers. Bytes in, bytes out; HTTP is `server`'s.

A caller is the identity its certificate proved, a Stranger without a certificate, or LOCAL on the socket in the
centre's own directory. Each call names the classes that may make it; nothing else is looked at before that is settled.
A workload's certificate opens no call at all.
"""

import enum
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from ca import x509
from ca.authority import Refused
from ca.centre import Centre
from ca.contract import (
    ApplyRequest,
    AskRequest,
    AskResponse,
    ContractError,
    DeleteRequest,
    FoundRequest,
    JoinRequest,
    LabelRequest,
    Problem,
    RecoverRequest,
    ResourceName,
    SignRequest,
    Time,
    TokenRequest,
    check_version,
)
from ca.hints import did_you_mean
from ca.identity import Identity, NodeIdentity, OperatorIdentity
from ca.registry import RegistryError
from ca.resources.kinds import KINDS, Resource, decode
from ca.resources.metadata import Key
from ca.sessions import AskError
from ca.store import ConflictError, StoreError

log: structlog.stdlib.BoundLogger = structlog.get_logger()

SESSION = "/v1/session"
MOST_LISTED = 10_000
"""Certificates in one answer: a line of each has about 200 bytes, and an answer must not be larger than MAX_BODY."""

ASK_WITHIN = 5.0
"""Seconds a node has to answer an operator's question."""


class Local(enum.Enum):
    """Root at the centre's own machine."""

    LOCAL = "local"


@dataclass(frozen=True, slots=True)
class Stranger:
    """Somebody without a certificate, on the connection that has this binding."""

    binding: bytes


LOCAL = Local.LOCAL
Caller = Identity | Local | Stranger


@dataclass(frozen=True, slots=True)
class Reply:
    """Status and JSON body."""

    status: int
    body: bytes


class _CallError(Exception):
    def __init__(self, status: int, message: str, kind: str = "refused") -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind


@dataclass(frozen=True, slots=True)
class _Call:
    """Who may call (`who` for the message), what the body holds (None: nothing) and what to do."""

    may: Callable[[Centre, Caller], bool]
    who: str
    body: type[msgspec.Struct] | None
    run: Callable[[Centre, Any, Any, Mapping[str, str]], Awaitable[msgspec.Struct]]


def _anybody(centre: Centre, caller: Caller) -> bool:
    return True


def _nobody(centre: Centre, caller: Caller) -> bool:
    return isinstance(caller, Stranger)


def _node(centre: Centre, caller: Caller) -> bool:
    return isinstance(caller, NodeIdentity) and caller.trust_domain == centre.trust_domain


def _operator(centre: Centre, caller: Caller) -> bool:
    return caller is LOCAL or (isinstance(caller, OperatorIdentity) and caller.trust_domain == centre.trust_domain)


def _local(centre: Centre, caller: Caller) -> bool:
    return caller is LOCAL


async def _join(centre: Centre, caller: Stranger, body: JoinRequest, query: Mapping[str, str]) -> msgspec.Struct:
    return await centre.join(body)


async def _renew(centre: Centre, caller: NodeIdentity, body: SignRequest, query: Mapping[str, str]) -> msgspec.Struct:
    return await centre.renew(caller, body.csr)


async def _recover(centre: Centre, caller: Stranger, body: RecoverRequest, query: Mapping[str, str]) -> msgspec.Struct:
    return await centre.recover(body, caller.binding)


async def _sign(centre: Centre, caller: NodeIdentity, body: SignRequest, query: Mapping[str, str]) -> msgspec.Struct:
    return await centre.sign(caller, body.csr)


async def _found(centre: Centre, caller: NodeIdentity, body: FoundRequest, query: Mapping[str, str]) -> msgspec.Struct:
    return await centre.found(caller, body)


async def _operators(centre: Centre, caller: Local, body: SignRequest, query: Mapping[str, str]) -> msgspec.Struct:
    try:
        identity = x509.read_csr(body.csr).identity
    except x509.CsrError as e:
        raise Refused(str(e)) from e
    if not isinstance(identity, OperatorIdentity):
        raise Refused(f"{identity} is no operator")
    return await centre.sign_operator(identity.name, body.csr)


async def _tokens(centre: Centre, caller: Caller, body: TokenRequest, query: Mapping[str, str]) -> msgspec.Struct:
    return await centre.create_token(body.node, body.ttl, body.discovery)


async def _apply(centre: Centre, caller: Caller, body: ApplyRequest, query: Mapping[str, str]) -> msgspec.Struct:
    resources: list[Resource] = []
    faults: list[str] = []
    for raw in body.resources:
        try:
            resources.append(decode(raw))
        except msgspec.MsgspecError as e:
            faults.append(f"object {len(resources) + len(faults) + 1} of the request: {e}")
    if faults:
        raise RegistryError(faults)
    return await centre.apply(resources, dry_run=body.dry_run)


async def _delete(centre: Centre, caller: Caller, body: DeleteRequest, query: Mapping[str, str]) -> msgspec.Struct:
    return await centre.delete([_key(n) for n in body.resources])


async def _label(centre: Centre, caller: Caller, body: LabelRequest, query: Mapping[str, str]) -> msgspec.Struct:
    return await centre.label(_key(body.resource), body.labels)


async def _list(centre: Centre, caller: Caller, body: None, query: Mapping[str, str]) -> msgspec.Struct:
    return centre.list(query.get("kind", ""), query.get("namespace", ""), query.get("name", ""))


async def _status(centre: Centre, caller: Caller, body: None, query: Mapping[str, str]) -> msgspec.Struct:
    return centre.status()


async def _trust(centre: Centre, caller: Caller, body: None, query: Mapping[str, str]) -> msgspec.Struct:
    return await centre.trust.status(_limit(query.get("limit", "")), centre.workload_life)


async def _time(centre: Centre, caller: Caller, body: None, query: Mapping[str, str]) -> msgspec.Struct:
    return Time(centre.now().timestamp())


async def _ask(centre: Centre, caller: Caller, body: AskRequest, query: Mapping[str, str]) -> msgspec.Struct:
    try:
        return AskResponse(await centre.sessions.ask(body.node, body.topic, msgspec.Raw(b"null"), ASK_WITHIN))
    except AskError as e:
        return AskResponse(error=str(e))


_AN_OPERATOR = "an operator (give --credential)"
_CALLS = {
    ("POST", "/v1/join"): _Call(_nobody, "somebody without a certificate, who has a join token", JoinRequest, _join),
    ("POST", "/v1/recover"): _Call(_nobody, "a node whose certificate has ended", RecoverRequest, _recover),
    ("POST", "/v1/renew"): _Call(_node, "a node", SignRequest, _renew),
    ("POST", "/v1/sign"): _Call(_node, "a node", SignRequest, _sign),
    ("POST", "/v1/found"): _Call(_node, "a node", FoundRequest, _found),
    ("POST", "/v1/operators"): _Call(_local, "root at the centre's own machine", SignRequest, _operators),
    ("POST", "/v1/tokens"): _Call(_operator, _AN_OPERATOR, TokenRequest, _tokens),
    ("POST", "/v1/apply"): _Call(_operator, _AN_OPERATOR, ApplyRequest, _apply),
    ("POST", "/v1/delete"): _Call(_operator, _AN_OPERATOR, DeleteRequest, _delete),
    ("POST", "/v1/label"): _Call(_operator, _AN_OPERATOR, LabelRequest, _label),
    ("POST", "/v1/ask"): _Call(_operator, _AN_OPERATOR, AskRequest, _ask),
    ("GET", "/v1/resources"): _Call(_operator, _AN_OPERATOR, None, _list),
    ("GET", "/v1/time"): _Call(_anybody, "anybody", None, _time),
    ("GET", "/v1/status"): _Call(_operator, _AN_OPERATOR, None, _status),
    ("GET", "/v1/trust"): _Call(_operator, _AN_OPERATOR, None, _trust),
}


async def answer(
    centre: Centre,
    caller: Caller,
    method: str,
    path: str,
    query: Mapping[str, str],
    version: str,
    body: bytes,
    serial: str = "",
) -> Reply:
    """Make a call. `version` is the caller's contract version, empty if it stated none, `serial` that of the
    certificate it showed."""
    bound = log.bind(call=f"{method} {path}"[:100], caller=name(caller))
    try:
        call = _find(method, path)
        if not isinstance(caller, Local | Stranger) and (why := centre.objection(caller, serial)):
            raise _CallError(403, why, "revoked")
        if not call.may(centre, caller):
            raise _CallError(403, f"{method} {path} is for {call.who}; the caller is {name(caller)}")
        if version:
            check_version(version)
        request = msgspec.json.decode(body, type=call.body) if call.body else None
        result = await call.run(centre, caller, request, query)
        return Reply(200, msgspec.json.encode(result))
    except _CallError as e:
        reply = problem(e.status, str(e), e.kind)
    except ContractError as e:
        reply = problem(400, str(e), "version")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
        reply = problem(400, f"the body of {method} {path} is not what it should be: {e}", "invalid")
    except (RegistryError, Refused) as e:
        reply = problem(409 if isinstance(e, RegistryError) else 403, str(e))
    except (StoreError, ConflictError) as e:
        bound.error("store-failed", error=str(e))
        reply = problem(503, f"the centre cannot keep the change: {e}", "store")
    except Exception:
        bound.exception("bug")
        reply = problem(500, "the centre failed over this call; its log says how", "bug")
    bound.info("refused", status=reply.status, why=msgspec.json.decode(reply.body, type=Problem).message[:500])
    return reply


def may_watch(centre: Centre, caller: Caller, serial: str = "") -> NodeIdentity:
    """The node that opens a session; Refused when the caller is no node of this mesh, or not with this certificate."""
    if isinstance(caller, NodeIdentity) and (why := centre.objection(caller, serial)):
        raise Refused(why)
    if not isinstance(caller, NodeIdentity) or not centre.known(caller):
        raise Refused(f"a session is for a node of this mesh; the caller is {name(caller)}")
    return caller


def _find(method: str, path: str) -> _Call:
    call = _CALLS.get((method, path))
    if call is None:
        paths = {p for _, p in _CALLS} | {SESSION}
        if path in paths:
            raise _CallError(405, f"{path} is not called with {method}")
        raise _CallError(404, f"there is no {path[:100]}{did_you_mean(path[:100], paths)}")
    return call


def _limit(text: str) -> int:
    if not text:
        return MOST_LISTED
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 6):
        raise Refused(f"limit {text[:20]!r} is no number of certificates")
    return min(int(text), MOST_LISTED)


def _key(name: ResourceName) -> Key:
    if name.kind not in KINDS:
        raise Refused(f"{name.kind!r} is no kind{did_you_mean(name.kind, KINDS)}")
    return Key(name.kind, name.namespace, name.name)


def problem(status: int, message: str, kind: str = "refused") -> Reply:
    """A refusal."""
    return Reply(status, msgspec.json.encode(Problem(message, kind)))


def name(caller: Caller) -> str:
    """Who calls, for a message."""
    if isinstance(caller, Stranger):
        return "somebody without a certificate"
    return "root at the centre's own machine" if isinstance(caller, Local) else str(caller)
