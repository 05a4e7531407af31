"""Mesh: the one object that says what holds for all."""

import enum
from typing import Literal

import msgspec

from ca.duration import Duration
from ca.identity import check_trust_domain
from ca.resources.capture import CaptureSettings
from ca.resources.limits import Limits
from ca.resources.metadata import API_VERSION, Key, Metadata, Selector

SHORTEST_LIFE, LONGEST_LIFE = Duration(3600), Duration(90 * 86400)
"""Of a workload's certificate. Below it a centre that is away for a lunch break stops traffic, and a clock that is some
minutes wrong matters; above it a stolen key is good for a season."""


def check_life(life: float) -> None:
    """ValueError unless certificates of workloads may live for so many seconds."""
    if not SHORTEST_LIFE <= life <= LONGEST_LIFE:
        raise ValueError(f"{Duration(life)} is no life for a certificate: use {SHORTEST_LIFE} to {LONGEST_LIFE}")


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
    besides what it says itself, and each of `limits` for those that do not say another. `certificate_life` (as in 24h)
    is how long a workload's certificate is good for, from the next one on; None leaves it to the centre's setting
    `lives.workload`."""

    trust_domain: str
    enrolment: Selector = Selector({"mesh": "on"})
    mode: Mode = Mode.PERMISSIVE
    egress: Egress = Egress.BYPASS
    capture: CaptureSettings = CaptureSettings()
    limits: Limits = Limits()
    certificate_life: str | None = None

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        if self.certificate_life is not None:
            try:
                check_life(Duration.read(self.certificate_life))
            except ValueError as error:
                raise ValueError(f"certificateLife: {error}") from error


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
