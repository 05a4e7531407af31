import pytest

from ca.resources.capture import CaptureSettings, FailMode, Flow, Opaque, Skip, Unmeshed
from ca.resources.documents import DocumentError, read, to_yaml
from ca.resources.kinds import decode, encode
from ca.resources.mesh import Mesh
from ca.resources.workload import Workload

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
    (placed,) = read([("web.yaml", WORKLOAD)])
    assert isinstance(placed.resource, Workload)
    assert placed.resource.spec.capture == SETTINGS
    assert decode(encode(placed.resource)) == placed.resource
    assert read([("again.yaml", to_yaml([placed.resource]))])[0].resource == placed.resource


def test_of_the_mesh() -> None:
    text = "kind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: d.example, capture: {out: {skip: {ports: [53]}}}}\n"
    (placed,) = read([("mesh.yaml", text)])
    assert isinstance(placed.resource, Mesh)
    assert placed.resource.spec.capture.out.skip == Skip((53,))
    assert decode(encode(placed.resource)) == placed.resource


def test_nothing_is_said_of_what_is_as_usual() -> None:
    text = "kind: Workload\nmetadata: {name: web, namespace: shop}\nspec: {node: web-1, serviceAccount: web}\n"
    assert b"capture" not in encode(read([("web.yaml", text)])[0].resource)


@pytest.mark.parametrize(
    ("right", "wrong", "complaint"),
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
def test_what_is_wrong_is_said(right: str, wrong: str, complaint: str) -> None:
    assert right in WORKLOAD
    with pytest.raises(DocumentError) as caught:
        read([("w.yaml", WORKLOAD.replace(right, wrong))])
    assert complaint in str(caught.value)


@pytest.mark.parametrize(("said", "meant"), [("", FailMode.CLOSED), ("  failMode: open\n", FailMode.OPEN)])
def test_fail_mode(said: str, meant: FailMode) -> None:
    (document,) = read([("w.yaml", WORKLOAD + said)])
    assert isinstance(document.resource, Workload)
    assert document.resource.spec.fail_mode is meant


def test_no_third_fail_mode() -> None:
    with pytest.raises(DocumentError) as caught:
        read([("w.yaml", WORKLOAD + "  failMode: ajar\n")])
    assert "spec.failMode" in str(caught.value)
    assert "ajar" in str(caught.value)
