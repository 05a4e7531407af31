import pytest

from agent.snapshot import Snapshot
from agent.worker.opaque import arriving, leaving
from ca.resources.capture import CaptureSettings, Flow, Opaque
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Metadata
from ca.resources.workload import Workload, WorkloadSpec

NONE = CaptureSettings()


def _out(*ports: int, cidrs: tuple[str, ...] = ()) -> CaptureSettings:
    return CaptureSettings(out=Flow(opaque=Opaque(ports, cidrs)))


def _in(*ports: int, cidrs: tuple[str, ...] = ()) -> CaptureSettings:
    return CaptureSettings(in_=Flow(opaque=Opaque(ports, cidrs)))


def _workload(name: str, capture: CaptureSettings) -> Workload:
    return Workload(Metadata(name, "shop", {"mesh": "on"}), WorkloadSpec("n1", name, ports=(80,), capture=capture))


@pytest.mark.parametrize(
    ("mesh", "web", "db", "leaves", "arrives"),
    [
        (NONE, NONE, NONE, False, False),
        (NONE, _out(80), NONE, True, False),
        (NONE, _out(81), NONE, False, False),
        (NONE, _out(cidrs=("10.0.0.0/8",)), NONE, True, False),
        (NONE, _out(cidrs=("11.0.0.0/8", "fd00::/8")), NONE, False, False),
        (NONE, NONE, _in(80), True, True),
        (NONE, _in(80), _out(80), False, False),
        (NONE, NONE, _in(cidrs=("192.0.2.0/24",)), False, True),
        (_in(80), NONE, NONE, True, True),
        (_out(80), NONE, NONE, True, False),
    ],
)
def test_who_says_so(
    mesh: CaptureSettings, web: CaptureSettings, db: CaptureSettings, leaves: bool, arrives: bool
) -> None:
    source, destination = _workload("web", web), _workload("db", db)
    objects = [Mesh(Metadata("mesh"), MeshSpec("shop.example", capture=mesh)), source, destination]
    snapshot = Snapshot("n1").apply(1, objects, [])
    assert leaving(snapshot, source, destination, "10.0.0.2", 80) is leaves
    assert arriving(snapshot, destination, "192.0.2.7", 80) is arrives


def test_a_stranger_says_nothing() -> None:
    source = _workload("web", _out(80))
    assert leaving(Snapshot("n1"), source, None, "10.0.0.2", 80)
    assert not leaving(Snapshot("n1"), source, None, "10.0.0.2", 81)
