"""The issuing certificate changes again and again, and nobody who talks notices."""

import pytest
import trio

from agent.lab.place import Place
from ca.client import Client
from tests.netns.node import WEB, Pair, pair
from tests.netns.traffic import dial


async def _issuing(two: Pair) -> str:
    trust = await Client.at_socket(two.mesh.directory / "central.sock").trust(100)
    assert trust.alarms == []
    return next(c.title for c in trust.certificates if c.what == "issuing")


async def _speak(two: Pair) -> None:
    """A new connection, and both ways through it."""
    place = Place(two.one.machine.namespace, WEB)
    async with await dial(place, two.two.machine.address, 9090) as stream:
        greeting = await stream.receive_some()
        assert greeting.startswith(b"220 api greets")
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"hello"


@pytest.mark.slow
async def test_three_issuing_certificates_under_traffic() -> None:
    """One lives for 24 s, so a new one comes every 12, and nothing that it signed lives longer. Connections are made
    all the time, one stays open through it all, and the centre is killed and comes back in between."""
    async with pair() as two:
        await two.shorten(24)
        await two.enrol()
        place = Place(two.one.machine.namespace, WEB)
        seen: list[str] = []
        made = 0
        async with await dial(place, two.two.machine.address, 9090) as live:
            await live.receive_some()
            with trio.fail_after(90):
                while len(seen) < 4:
                    await _speak(two)
                    made += 1
                    await live.send_all(b"still here")
                    assert await live.receive_some() == b"still here"
                    if (issuing := await _issuing(two)) not in seen:
                        seen.append(issuing)
                        if len(seen) == 2:
                            assert two.mesh.process
                            await two.mesh.process.kill()
                            await _speak(two)
                            await two.mesh.start_centre()
                    await trio.sleep(0.1)
        assert made > 100
        connections = (await two.ask(two.one, "connections"))["closed"]
        assert {c["security"] for c in connections} == {"mtls"}
