"""Mesh: the one object that says what holds for all."""

import enum
from typing import Literal

import msgspec

from ca.identity import check_trust_domain
from ca.resources.capture import CaptureSettings
from ca.resources.metadata import API_VERSION, Key, Metadata, Selector


class Mode(enum.Enum):
    """Whether an enrolled workload accepts connections that carry no identity."""

    PERMISSIVE = "PERMISSIVE"
    STRICT = "STRICT"


class Egress(enum.Enum):
    """What happens to an enrolled workload's connections that go to no mesh address.

    bypass         they stay in the kernel, counted
    observe        they are captured, recorded and passed on in plaintext
    registry-only  they are captured and refused
    """

    BYPASS = "bypass"
    OBSERVE = "observe"
    REGISTRY_ONLY = "registry-only"


class MeshSpec(msgspec.Struct, frozen=True, rename="camel"):
    """`trust_domain` is set by `culvert central init` and cannot change afterwards. `capture` holds for every workload,
    besides what it says itself."""

    trust_domain: str
    enrolment: Selector = Selector({"mesh": "on"})
    mode: Mode = Mode.PERMISSIVE
    egress: Egress = Egress.BYPASS
    capture: CaptureSettings = CaptureSettings()

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)


class Mesh(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag_field="kind"):
    """The mesh; its name is always `mesh`."""

    metadata: Metadata
    spec: MeshSpec
    api_version: Literal["culvert/v1"] = API_VERSION

    def __post_init__(self) -> None:
        if (self.metadata.namespace, self.metadata.name) != ("", "mesh"):
            raise ValueError("metadata.name must be mesh, without a namespace: there is one Mesh")

    @property
    def key(self) -> Key:
        return Key("Mesh", "", "mesh")
