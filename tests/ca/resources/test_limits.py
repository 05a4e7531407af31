import pytest

from ca.resources.limits import Limits, size
from ca.resources.mesh import Mesh
from ca.resources.workload import Workload
from tests.ca.resources.texts import complaint, one

WORKLOAD = """\
kind: Workload
metadata: {name: web, namespace: shop}
spec:
  node: web-1
  serviceAccount: web
  limits: {connections: 1000, connectionsPerSecond: 200, descriptors: 2000, memory: 512Mi}
"""
LIMITS = Limits(1000, 200, 2000, "512Mi")


def test_of_a_workload_and_of_the_mesh() -> None:
    workload = one(WORKLOAD)
    assert isinstance(workload, Workload)
    assert workload.spec.limits == LIMITS
    text = "kind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: d.example, limits: {connections: 5}}\n"
    mesh = one(text)
    assert isinstance(mesh, Mesh)
    assert mesh.spec.limits == Limits(5)


def test_each_limit_that_is_not_said_is_the_other_ones() -> None:
    assert Limits(1, memory="1Mi").else_(LIMITS) == Limits(1, 200, 2000, "1Mi")
    assert Limits().else_(LIMITS) == LIMITS.else_(Limits()) == LIMITS


@pytest.mark.parametrize(("text", "bytes_"), [("1", 1), ("64Ki", 2**16), ("64Mi", 2**26), ("2Gi", 2**31)])
def test_sizes(text: str, bytes_: int) -> None:
    assert size(text) == bytes_


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        (
            "connections: 1000",
            "connections: 0",
            "w.yaml:6: workload shop/web: spec.limits.connections: 0 must be at least 1",
        ),
        (
            "connectionsPerSecond: 200",
            "connectionsPerSecond: 0.5",
            "spec.limits.connectionsPerSecond: expected a number",
        ),
        ("connectionsPerSecond", "connections_per_second", "no such field; did you mean connectionsPerSecond?"),
        ("memory: 512Mi", "memory: 512MB", "spec.limits.memory: memory '512MB' is no size, as in 64Mi"),
    ],
)
def test_what_is_wrong_is_said(right: str, wrong: str, said: str) -> None:
    assert said in complaint(WORKLOAD, right, wrong)
