import pytest

from ca.resources.capture import CaptureSettings, FailMode, Flow, Opaque, Skip, Unmeshed
from ca.resources.kinds import encode
from ca.resources.mesh import Mesh
from ca.resources.workload import Workload
from tests.ca.resources.texts import complaint, one

WORKLOAD = """\
kind: Workload
metadata: {name: web, namespace: shop}
spec:
  node: web-1
  serviceAccount: web
  ports: [80, 9090]
  capture:
    out:
      skip: {ports: [3306], cidrs: [10.9.0.0/16, "fd00::1"], uids: [990]}
      opaque: {ports: [5432]}
    in:
      skip: {ports: [9090]}
      opaque: {cidrs: [192.0.2.0/24]}
    unmeshed: block
"""
SETTINGS = CaptureSettings(
    Flow(Skip((3306,), ("10.9.0.0/16", "fd00::1"), (990,)), Opaque((5432,))),
    Flow(Skip((9090,)), Opaque(cidrs=("192.0.2.0/24",))),
    Unmeshed.BLOCK,
)


def test_of_a_workload() -> None:
    workload = one(WORKLOAD)
    assert isinstance(workload, Workload)
    assert workload.spec.capture == SETTINGS


def test_of_the_mesh() -> None:
    text = "kind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: d.example, capture: {out: {skip: {ports: [53]}}}}\n"
    mesh = one(text)
    assert isinstance(mesh, Mesh)
    assert mesh.spec.capture.out.skip == Skip((53,))


def test_nothing_is_said_of_what_is_as_usual() -> None:
    text = "kind: Workload\nmetadata: {name: web, namespace: shop}\nspec: {node: web-1, serviceAccount: web}\n"
    assert b"capture" not in encode(one(text))


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (
            "ports: [3306]",
            "ports: [0]",
            "w.yaml:9: workload shop/web: spec.capture.out.skip.ports[0]: 0 must be at least",
        ),
        ("10.9.0.0/16", "10.9.0.7/16", "spec.capture.out.skip.cidrs: cidrs: '10.9.0.7/16' must be written 10.9.0.0/16"),
        ("10.9.0.0/16", "db.example", "cidrs: 'db.example' is no address and no CIDR, as in 10.0.0.0/8"),
        ("uids: [990]", "uids: [root]", "spec.capture.out.skip.uids[0]: expected a number"),
        ("uids: [990]", "users: [990]", "spec.capture.out.skip.users: no such field"),
        ("skip: {ports: [9090]}", "skip: {ports: [9091]}", "capture.in.skip.ports has 9091, which is none of ports"),
        ("unmeshed: block", "unmeshed: deny", "spec.capture.unmeshed: 'deny' is no choice"),
        ("opaque: {ports: [5432]}", "opaque: {uids: [1]}", "spec.capture.out.opaque.uids: no such field"),
    ],
)
def test_what_is_wrong_is_said(right: str, wrong: str, said: str) -> None:
    assert said in complaint(WORKLOAD, right, wrong)


@pytest.mark.parametrize(("said", "meant"), [("", FailMode.CLOSED), ("  failMode: open\n", FailMode.OPEN)])
def test_fail_mode(said: str, meant: FailMode) -> None:
    workload = one(WORKLOAD + said)
    assert isinstance(workload, Workload)
    assert workload.spec.fail_mode is meant


def test_no_third_fail_mode() -> None:
    said = complaint(WORKLOAD + "  failMode: ajar\n")
    assert "spec.failMode" in said
    assert "ajar" in said
