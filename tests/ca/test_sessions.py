import contextlib
import time
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio

from ca.centre import Centre
from ca.contract import VERSION, Answer, Hello, LocalMatch, Report
from ca.frames import FramesEnded, FrameStream, centre_side, node_side
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Key, Metadata
from ca.resources.revocation import Revocation, RevocationSpec
from ca.resources.workload import Match
from ca.sessions import AskError
from tests.ca.objects import node, workload
from tests.ca.replica import Replica


@contextlib.asynccontextmanager
async def session(centre: Centre, name: str, replica: Replica | None = None) -> AsyncIterator[FrameStream]:
    """A session over memory streams; the replica, if any, follows it."""
    near, far = trio.testing.memory_stream_pair()
    frames = node_side(near)

    async def serve() -> None:
        async with far:
            await centre.sessions.serve(name, centre_side(far))

    async def follow(replica: Replica) -> None:
        with contextlib.suppress(FramesEnded):
            await replica.follow(frames)
        replica.ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        if replica:
            await frames.send(replica.hello())
            nursery.start_soon(follow, replica)
        yield frames
        await near.aclose()


async def answer_one(replica: Replica, frames: FrameStream) -> None:
    await frames.send(Answer((await replica.asked()).id))


async def test_the_private_part_comes_before_its_revision(centre: Centre) -> None:
    await centre.apply([node("a"), node("b"), workload("web", uid=1)])
    a, b = Replica(), Replica()
    async with session(centre, "a", a), session(centre, "b", b):
        await a.at(2)
        await b.at(2)
        await centre.apply([workload("api", "b", uid=1)])
        await a.at(3)
        await b.at(3)
        await centre.apply([workload("api", "a", uid=2)])
        await a.at(4)
        await b.at(4)
        await centre.label(Key("Workload", "shop", "web"), {"mesh": "on"})
        await a.at(5)
    assert a.said == [
        ("roots", 0), ("private", 2), ("reset", 2), ("delta", 3), ("private", 4), ("delta", 4), ("delta", 5)
    ]  # fmt: skip
    assert b.said[:7] == [
        ("roots", 0), ("private", 2), ("reset", 2), ("private", 3), ("delta", 3), ("private", 4), ("delta", 4)
    ]  # fmt: skip
    assert a.matches == [LocalMatch("shop", "api", Match(uid=2)), LocalMatch("shop", "web", Match(uid=1))]
    assert b.matches == []
    assert a.roots == centre.roots()


async def test_resume_sends_only_what_came_since(centre: Centre) -> None:
    await centre.apply([node("a"), node("b")])
    replica = Replica()
    async with session(centre, "a", replica):
        await replica.at(2)
    await centre.apply([node("c")])
    await centre.delete([Key("Node", "", "b")])
    replica.said.clear()
    async with session(centre, "a", replica):
        await replica.at(4)
    assert replica.said == [("roots", 0), ("private", 4), ("delta", 4)]
    assert set(replica.objects) == {Key("Mesh", "", "mesh"), Key("Node", "", "a"), Key("Node", "", "c")}


async def test_a_node_that_came_after_the_kept_whole_mesh_has_its_session(centre: Centre) -> None:
    await centre.apply([node("a")])
    async with session(centre, "a", first := Replica()):
        await first.at(2)
    await centre.apply([node("b"), workload("web", "b", uid=1)])
    async with session(centre, "b", second := Replica()):
        await second.at(3)
    assert set(second.objects) == {Key("Mesh", "", "mesh"), Key("Node", "", "a"), Key("Node", "", "b")} | {
        Key("Workload", "shop", "web")
    }
    assert second.matches == [LocalMatch("shop", "web", Match(uid=1))]


async def test_a_report_stands_in_the_status(centre: Centre) -> None:
    await centre.apply([node("a", "10.0.0.1"), node("b")])
    replica = Replica()
    async with session(centre, "a", replica) as frames:
        await replica.at(2)
        await frames.send(Report(2, ["nft: no permission"]))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer_one, replica, frames)
            await centre.sessions.ask("a", "x", msgspec.Raw(b"null"), 5)  # what was sent before has been heard
        status = centre.status().nodes[0]
        assert (status.name, status.connected, status.active) == ("a", True, 2)
        assert (status.address, status.problems, status.agent_version) == ("10.0.0.1", ["nft: no permission"], "test")
        assert not centre.status().nodes[1].connected
    after = centre.status().nodes[0]
    assert (after.connected, after.active) == (False, 2)
    assert after.seen > 0


async def test_why_a_node_is_away_stands_in_the_status(centre: Centre) -> None:
    await centre.apply([node("a"), node("b")])
    a = Replica()
    async with session(centre, "a", a):
        await a.at(2)
        assert [(n.contract, n.away) for n in centre.status().nodes if n.name == "a"] == [(VERSION, "")]
    async with session(centre, "b") as frames:
        await frames.send(Hello("2.0", "9.9"))
        with pytest.raises(FramesEnded):
            await frames.receive()
    gone, refused = centre.status().nodes
    assert (gone.connected, refused.connected) == (False, False)
    assert gone.away
    assert (refused.contract, refused.agent_version) == ("2.0", "9.9")
    assert "upgrade the older side" in refused.away
    async with session(centre, "a", again := Replica()):
        await again.at(2)
        assert centre.status().nodes[0].away == ""


async def test_a_question_is_answered(centre: Centre) -> None:
    await centre.apply([node("a")])
    replica = Replica()
    async with session(centre, "a", replica) as frames, trio.open_nursery() as nursery:
        await replica.at(2)

        async def reply() -> None:
            ask = await replica.asked()
            assert (ask.topic, bytes(ask.body)) == ("connections", b'{"live":true}')
            await frames.send(Answer(ask.id + 1000, msgspec.Raw(b"1")))  # to nothing asked: ignored
            await frames.send(Answer(ask.id, msgspec.Raw(b'["x"]')))

        nursery.start_soon(reply)
        assert bytes(await centre.sessions.ask("a", "connections", msgspec.Raw(b'{"live":true}'), 5)) == b'["x"]'

        async def refuse() -> None:
            await frames.send(Answer((await replica.asked()).id, error="no such topic"))

        nursery.start_soon(refuse)
        with pytest.raises(AskError, match="node a: no such topic"):
            await centre.sessions.ask("a", "x", msgspec.Raw(b"null"), 5)


async def test_a_question_to_nobody_or_to_the_silent(centre: Centre) -> None:
    await centre.apply([node("a")])
    with pytest.raises(AskError, match="not connected"):
        await centre.sessions.ask("a", "x", msgspec.Raw(b"null"), 5)
    replica = Replica()
    async with session(centre, "a", replica) as frames:
        await replica.at(2)
        with pytest.raises(AskError, match=r"did not answer within 0\.01 s"):
            await centre.sessions.ask("a", "x", msgspec.Raw(b"null"), 0.01)
        await replica.asked()
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                await replica.asked()
                await frames._stream.aclose()

            nursery.start_soon(leave)
            with pytest.raises(AskError, match="went away"):
                await centre.sessions.ask("a", "x", msgspec.Raw(b"null"), 5)


async def test_a_newer_session_ends_the_older(centre: Centre) -> None:
    await centre.apply([node("a")])
    old, new = Replica(), Replica()
    async with session(centre, "a", old):
        await old.at(2)
        async with session(centre, "a", new):
            await new.at(2)
            with trio.fail_after(5):
                await old.ended.wait()
            assert centre.status().nodes[0].connected


async def test_a_deleted_node_is_sent_away(centre: Centre) -> None:
    await centre.apply([node("a"), node("b")])
    replica = Replica()
    with trio.fail_after(5):
        async with session(centre, "a") as frames:
            await frames.send(replica.hello())
            await centre.delete([Key("Node", "", "a")])
            with pytest.raises(FramesEnded):
                await replica.follow(frames)


async def test_that_a_node_is_revoked_stands_in_the_status(centre: Centre) -> None:
    await centre.apply([Mesh(Metadata("mesh"), MeshSpec("shop.example")), node("a")])
    async with session(centre, "a", replica := Replica()):
        await replica.at(1)
        await centre.apply([Revocation(Metadata("it"), RevocationSpec("spiffe://shop.example/node/a"))])
        with trio.fail_after(5):
            await replica.ended.wait()
    assert "is revoked" in centre.status().nodes[0].away


@pytest.mark.parametrize(
    "first",
    [
        b"\x00\x00\x00\x02{}",
        b"\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        b'\x00\x00\x00\x1d{"frame":"report","active":1}',
    ],
)
async def test_what_is_no_hello_ends_the_session(centre: Centre, first: bytes) -> None:
    await centre.apply([node("a")])
    with trio.fail_after(5):
        async with session(centre, "a") as frames:
            await frames.send_encoded(first)
            with pytest.raises(FramesEnded):
                await frames.receive()
    assert not centre.status().nodes[0].seen


async def test_one_that_says_nothing_is_dropped(centre: Centre, autojump_clock: trio.testing.MockClock) -> None:
    await centre.apply([node("a")])
    async with session(centre, "a") as frames:
        with pytest.raises(FramesEnded):
            await frames.receive()
    assert trio.current_time() >= 10


async def test_versions_of_the_other_side(centre: Centre) -> None:
    await centre.apply([node("a")])
    for version in ("1.0", "1.1", "1.99"):
        replica = Replica()
        async with session(centre, "a") as frames:
            hello = msgspec.json.encode(msgspec.structs.replace(replica.hello(), version=version))
            hello = hello[:-1] + b',"news":{"of":"1.1"}}'
            await frames.send_encoded(len(hello).to_bytes(4, "big") + hello)
            unknown = b'{"frame":"gossip","about":[1]}'
            await frames.send_encoded(len(unknown).to_bytes(4, "big") + unknown)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(replica.follow, frames)
                await replica.at(2)
                nursery.cancel_scope.cancel()
    async with session(centre, "a") as frames:
        await frames.send(Replica().hello("2.0"))
        with pytest.raises(FramesEnded):
            await frames.receive()


async def test_the_status_of_many_nodes_keeps_nobody_waiting(centre: Centre) -> None:
    """Each scrape of the metrics asks for it, and the centre does nothing else meanwhile."""
    await centre.apply([node(f"n-{number}") for number in range(10_000)])
    for number in range(10_000):
        centre.sessions._heard(f"n-{number}")
    begun = time.process_time()
    assert len(centre.status().nodes) == 10_000
    assert time.process_time() - begun < 0.5
