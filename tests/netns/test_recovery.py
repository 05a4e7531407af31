"""Nodes that were away for longer than their certificates live: real processes, lives of seconds."""

import signal
from collections.abc import AsyncIterator

import pytest
import trio

from agent.leaf import Leaf
from agent.node.state import State
from tests.netns.node import CAPTURED, Pair, pair, soon

LIFE = 4.0
SHORT = {"CULVERT_CENTRAL_LIVES_NODE": "4s"}


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair(SHORT) as made:
        await made.enrol()
        assert await soon(lambda: _talks(made))
        yield made


async def _talks(two: Pair) -> bool:
    return await two.talk() == CAPTURED


async def _connected(two: Pair) -> bool:
    return bool((await two.ask(two.one, "status"))["connected"])


def _leaf(two: Pair) -> Leaf:
    leaf = State(two.one.directory / "state").node_leaf()
    assert leaf is not None
    return leaf


async def test_a_node_that_was_off(two: Pair) -> None:
    process = two.one.process
    assert process is not None
    await process.kill()
    process.sweep()
    before = _leaf(two)
    await trio.sleep(LIFE + 1)  # the certificate ends by the wall clock
    await two.mesh.start_agent(two.one)
    assert await soon(lambda: _connected(two), 10), two.one.process.tail() if two.one.process else ""
    assert await soon(lambda: _talks(two), 10)
    assert _leaf(two).serial != before.serial
    assert two.mesh.process is not None
    assert "node-recovers" in two.mesh.process.output()


async def test_a_node_that_was_suspended(two: Pair) -> None:
    process = two.one.process
    assert process is not None
    process.signal(signal.SIGSTOP)
    await trio.sleep(LIFE + 1)
    process.signal(signal.SIGCONT)
    assert await soon(lambda: _connected(two), 10), process.tail()
    assert await soon(lambda: _talks(two), 10)


async def test_a_node_that_was_cut_off(two: Pair) -> None:
    """The centre was away, not the node; it tries on and comes back, unless it was revoked meanwhile."""
    assert two.mesh.process is not None
    await two.mesh.process.end()
    await trio.sleep(LIFE + 1)
    await two.mesh.start_centre()
    assert await soon(lambda: _connected(two), 20), two.one.process and two.one.process.tail()
    assert await soon(lambda: _talks(two), 20)
    await two.mesh.operator("ca", "revoke", "node", "one", "--reason", "stolen")

    async def out() -> bool:
        return not await _connected(two)

    assert await soon(out)
    await trio.sleep(LIFE + 1)

    async def told() -> bool:
        problems = (await two.ask(two.one, "status"))["problems"]
        return any("is revoked (stolen)" in problem for problem in problems)

    assert await soon(told, 20), (await two.ask(two.one, "status"), two.one.process and two.one.process.tail())
    assert not await _connected(two)


async def test_after_the_window_the_next_step_is_named_and_helps() -> None:
    async with pair({**SHORT, "CULVERT_CENTRAL_LIVES_RECOVERY": "5s"}) as two:
        process = two.one.process
        assert process is not None
        await process.kill()
        process.sweep()
        await trio.sleep(LIFE + 6)
        await two.mesh.start_agent(two.one)

        async def told() -> bool:
            problems = (await two.ask(two.one, "status"))["problems"]
            return any("culvert central token create --node one" in problem for problem in problems)

        assert await soon(told, 10), two.one.process and two.one.process.tail()
        token = (await two.mesh.operator("central", "token", "create", "--node", "one")).strip()
        assert two.one.process is not None
        await two.one.process.end()
        await two.mesh.on(two.one, "agent", "join", "--force", token)
        await two.mesh.start_agent(two.one)
        assert await soon(lambda: _connected(two), 10)


async def test_sealed_keys_need_their_secret(two: Pair) -> None:
    """Plain ones are sealed at the first start with a secret; without it the agent says what it lacks."""
    secret = two.one.directory / "secret"
    secret.write_bytes(bytes(range(32)))
    process = two.one.process
    assert process is not None
    await process.end()
    two.one.settings["CULVERT_AGENT_SEAL"] = str(secret)
    await two.mesh.start_agent(two.one)
    assert await soon(lambda: _talks(two), 10)
    files = [*(two.one.directory / "state").rglob("*.pem")]
    assert len(files) == 3
    assert [f.name for f in files if b"PRIVATE KEY" in f.read_bytes()] == []
    assert two.one.process is not None
    await two.one.process.end()
    del two.one.settings["CULVERT_AGENT_SEAL"]
    ran = await two.mesh.try_on(two.one, "agent", "run")
    assert not ran.ok
    assert "is sealed, and the secret that opens it was not given" in ran.errors
    assert "Traceback" not in ran.errors
    two.one.settings["CULVERT_AGENT_SEAL"] = str(secret)
    await two.mesh.start_agent(two.one)
    assert await soon(lambda: _talks(two), 10)
