"""The union of all kinds, and its codec for wire and store."""

from collections.abc import Iterable, Iterator

import msgspec

from ca.resources.mesh import Mesh
from ca.resources.node import Node
from ca.resources.policy import AuthorizationPolicy, PeerAuthentication
from ca.resources.revocation import Revocation
from ca.resources.workload import Workload

Resource = Workload | Node | Mesh | AuthorizationPolicy | PeerAuthentication | Revocation

KINDS: dict[str, type[Resource]] = {
    "Workload": Workload,
    "Node": Node,
    "Mesh": Mesh,
    "AuthorizationPolicy": AuthorizationPolicy,
    "PeerAuthentication": PeerAuthentication,
    "Revocation": Revocation,
}

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Resource] = msgspec.json.Decoder(Resource)


class _Kind(msgspec.Struct):
    kind: str


_peek = msgspec.json.Decoder(_Kind)


def encode(resource: Resource) -> bytes:
    """One object as JSON."""
    return _encoder.encode(resource)


def decode(data: bytes | msgspec.Raw) -> Resource:
    """One object from JSON; msgspec.ValidationError says what is wrong. Unknown fields are ignored: a newer peer may
    have added them (files go through `documents`, which refuses them)."""
    return _decoder.decode(data)


def decode_known(raws: Iterable[msgspec.Raw | bytes]) -> Iterator[Resource]:
    """The objects whose kind this version knows; a newer centre may send others."""
    for raw in raws:
        if _peek.decode(raw).kind in KINDS:
            yield _decoder.decode(raw)


def json_schema() -> dict[str, object]:
    """JSON Schema of every kind."""
    return msgspec.json.schema(Resource)
