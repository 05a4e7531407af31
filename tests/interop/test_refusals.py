"""Who is refused between Envoy and us, by whom, and what either side says of it."""

import pytest

from agent.connections import Verdict
from agent.lab.place import Place
from tests.interop.scene import CLOSED, DB, NOWHERE, STATUSES, VAULT, Scene, identity
from tests.netns import traffic


async def test_without_a_server_name_the_address_decides(scene: Scene) -> None:
    """Only one identity has this address."""
    lane = scene.lane("us no-sni")
    async with traffic.serving(lane.server, lane.served_address, lane.served_port, traffic.echo):
        assert await traffic.ask(lane.caller, lane.address, lane.port) == b"ping"
    record = await scene.worker.record(lane.served_port)
    assert record.destination.identity == str(identity("solo"))


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("no-sni-shared", "without a server name"),
        ("sni-of-nobody", f"server name {identity('nobody').sni}"),
        ("anonymous", "peer did not return a certificate"),
        ("foreign", "leads to no root that is trusted here"),
        ("node", "only workloads speak here"),
        ("expects-another", "alert certificate unknown"),
    ],
)
async def test_a_tunnel_of_envoy_that_does_not_come_about(scene: Scene, way: str, reason: str) -> None:
    """In `expects-another` it is Envoy that refuses us: it wants another identity than the one it named."""
    lane = scene.lane(f"us {way}")
    async with traffic.serving(Place(scene.ours.namespace), scene.ours.address, DB, traffic.echo) as served:
        assert await traffic.refused(lane.caller, lane.address, lane.port)
        # The refused one spoils nothing for those that come after it.
        good = scene.lane("us plain")
        assert await traffic.ask(good.caller, good.address, good.port) == b"ping"
    assert len(served.peers) == 1
    await scene.worker.notice("tunnel_refused", reason)
    said = await scene.envoy.said(f"way {way}")
    assert "UF" in said["flags"]
    assert said["answer"] is None


@pytest.mark.parametrize(
    ("way", "port", "status", "verdict", "reason"),
    [
        ("closed", CLOSED, 503, Verdict.FAILED, "does not accept: Connection refused"),
        ("denied", VAULT, 401, Verdict.REFUSED, "denied by policy shop/no-till"),
        ("nowhere", NOWHERE, 400, Verdict.REFUSED, "no workload here is"),
        ("another's", DB, 400, Verdict.REFUSED, f"no workload here is {identity('vault')}"),
        ("by-name", None, 400, Verdict.REFUSED, "is no IP address and port"),
    ],
)
async def test_envoy_understands_our_refusals(
    scene: Scene, way: str, port: int | None, status: int, verdict: Verdict, reason: str
) -> None:
    lane = scene.lane(f"us {way}")
    ours = Place(scene.ours.namespace)
    async with (
        traffic.serving(ours, scene.ours.address, DB, traffic.echo) as db,
        traffic.serving(ours, scene.ours.address, VAULT, traffic.echo) as vault,
        traffic.serving(ours, scene.ours.address, NOWHERE, traffic.echo) as nowhere,
    ):
        assert await traffic.refused(lane.caller, lane.address, lane.port)
    assert db.peers + vault.peers + nowhere.peers == []
    said = await scene.envoy.said(f"way {way}")
    assert said["answer"]["headers"] == [{"key": ":status", "value": str(status)}]
    assert said["failure"] == f"tunnel_response:{status}"
    record = await scene.worker.record(port)
    assert record.verdict is verdict
    assert reason in record.reason
    assert record.source.identity == str(identity("till"))


@pytest.mark.parametrize(
    ("offset", "status", "verdict"),
    [(1, 503, Verdict.FAILED), (len(STATUSES) + 2, 404, Verdict.FAILED)]
    + [
        (offset, status, Verdict.REFUSED if status in (400, 401, 403, 429) else Verdict.FAILED)
        for offset, status in enumerate(STATUSES, 2)
    ],
)
async def test_we_understand_refusals_of_envoy(scene: Scene, offset: int, status: int, verdict: Verdict) -> None:
    """503 is for a port that nobody listens on, 404 for an authority that Envoy has no route for."""
    lane = scene.lane("envoy plain")
    assert await traffic.refused(lane.caller, lane.address, lane.port + offset)
    record = await scene.worker.record(lane.port + offset)
    assert record.verdict is verdict
    assert str(status) in record.reason
    seen = await scene.envoy.said("door plain", forwarded=f'for="{record.source.address}"')
    assert seen["status"] == status
    # The tunnel goes on.
    async with traffic.serving(lane.server, lane.served_address, lane.served_port, traffic.echo):
        assert await traffic.ask(lane.caller, lane.address, lane.port) == b"ping"
    assert (await scene.worker.record(lane.port)).tunnel == record.tunnel


@pytest.mark.parametrize(
    ("door", "reason"),
    [
        ("another", f"proved to be {identity('till')}, not {identity('bank')}"),
        ("expects-another", "did it refuse our certificate?"),
    ],
)
async def test_a_tunnel_to_envoy_that_does_not_come_about(scene: Scene, door: str, reason: str) -> None:
    """We refuse Envoy for showing another identity, and Envoy us for not being the one it wants."""
    lane = scene.lane(f"envoy {door}")
    async with traffic.serving(lane.server, lane.served_address, lane.served_port, traffic.echo) as served:
        assert await traffic.refused(lane.caller, lane.address, lane.port)
    assert not served.peers
    record = await scene.worker.record(lane.port)
    assert record.verdict is Verdict.FAILED
    assert reason in record.reason
