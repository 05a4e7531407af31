"""A unit that restarts a hundred times under traffic: its cgroup is a new one each time, and nothing slips out."""

import json
import signal
from typing import Any

import msgspec
import pytest
import trio

from agent.lab.place import Place, create_cgroup
from agent.lab.process import Process
from agent.lab.programs import SYSTEM_PYTHON
from tests.netns.node import soon, workload
from tests.netns.unit import MARKER, PORT, Unit, open_unit
from tests.promises import not_even_once

RATE = 200
"""Attempts a second, at least, in each round."""

STRICT, ELSEWHERE = {"mode": "STRICT"}, {"matchLabels": {"app": "elsewhere"}}

TALK = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as s:
    while s.sendall(b"h") or s.recv(1):
        print("heard", flush=True)
        time.sleep(0.02)
"""


@pytest.mark.alone
async def test_a_hundred_restarts_leave_no_gap(unit: Unit) -> None:
    said = await unit.storm(rounds=100, floor=RATE)
    with not_even_once():
        assert unit.seen() == (0, 0)
    _all_carried(said, 100)
    assert await unit.resolved() > 100  # the first attempts of each round
    connections = (await unit.two.ask(unit.two.one, "connections"))["closed"]
    assert {c["source"]["workload"] for c in connections[-1000:]} == {"shop/unit"}


@pytest.mark.alone
async def test_nor_do_they_over_ipv6(parent: str) -> None:
    async with open_unit(parent, ipv6=True) as unit:
        said = await unit.storm(rounds=20, floor=RATE)
        _all_carried(said, 20)
        assert unit.seen() == (0, 0)
        assert await unit.resolved() > 20
        await unit.two.mesh.on(unit.two.one, "capture", "off")
        assert (await unit.storm(rounds=1))["carried"] == 40
        assert unit.seen() == (2 * 40 * len(MARKER), 40)


def _all_carried(said: dict[str, Any], rounds: int) -> None:
    print(said)
    assert said["fast"] == rounds, said
    assert said["attempted"] == said["carried"] + said["refused"] == said["rounds"] * 40, said
    assert said["carried"] >= 0.97 * said["attempted"], said


async def test_without_capture_the_same_storm_is_there_for_all_to_read(unit: Unit) -> None:
    """That the sniffer would have seen it."""
    await unit.two.mesh.on(unit.two.one, "capture", "off")
    said = await unit.storm(rounds=5)
    assert said["carried"] == said["attempted"] == 200
    assert unit.seen() == (2 * 200 * len(MARKER), 200)


async def test_a_user_who_is_skipped_is_so_from_the_first_connection(unit: Unit) -> None:
    """In a new cgroup too, where it is not a rule that leaves the connection alone."""
    skipping = workload("unit", "one", {"cgroup": unit.cgroup}, skip_uids=(0,))
    await unit.two.apply(skipping)
    await unit.two.enrol("unit")
    said = await _storm_unseen(unit, 40)
    assert said["carried"] == said["attempted"] == 40, said
    assert unit.seen() == (2 * 40 * len(MARKER), 40)
    resolved = await unit.resolved()
    assert resolved > 0
    assert len(await _told(unit, "skipped by capture.out.skip", resolved)) == resolved


async def _told(unit: Unit, reason: str, count: int) -> list[dict[str, Any]]:
    """The connections on record with that reason, once there are so many: a worker may hear of an end later than the
    program that made it."""
    found: list[dict[str, Any]] = []

    async def all_there() -> bool:
        closed = (await unit.two.ask(unit.two.one, "connections"))["closed"]
        found[:] = [c for c in closed if reason in c.get("reason", "")]
        return len(found) >= count

    await soon(all_there)
    return found


async def _storm_unseen(unit: Unit, attempts: int) -> dict[str, Any]:
    """A round that begins before the supervisor sees the new cgroup, however busy the machine is."""
    process = unit.two.one.process
    assert process
    process.signal(signal.SIGSTOP)

    async def go_on() -> None:
        with trio.fail_after(20):
            while not await unit.resolved():
                pass
        process.signal(signal.SIGCONT)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(go_on)
        return await unit.storm(rounds=1, attempts=attempts)


async def test_neighbours_of_a_unit_are_left_alone(unit: Unit, parent: str) -> None:
    """A new cgroup beside the unit's is nobody's: what it sends arrives as it was, and soon goes past us."""
    unit.directory = unit.directory.with_name("stranger.service")
    attempts = 2000  # many more than are made until a busy machine's supervisor goes on
    said = await _storm_unseen(unit, attempts)
    assert said["carried"] == said["attempted"] == attempts, said
    assert unit.seen() == (2 * attempts * len(MARKER), attempts)
    resolved = await unit.resolved()
    assert 0 < resolved < attempts
    passed = await _told(unit, "no workload's", resolved)
    assert len(passed) == resolved
    assert {c["verdict"] for c in passed} == {"allowed"}
    assert (await unit.two.captured(unit.two.one))["shop/unit"] == 0
    # Known by now, it is left alone; nft shows cgroups by their paths.
    known = await unit.two.nft(unit.two.one.machine, "list", "set", "inet", "culvert", "known-2")
    assert f"{parent}/stranger.service" in known


async def test_a_neighbours_connection_outlives_every_change_but_one_that_refuses_it(unit: Unit, parent: str) -> None:
    """It was passed on as nobody's, and nothing here says that it may not go on; at the other end a policy may."""
    two = unit.two
    talk = await _talk_unseen(unit, f"{parent}/stranger.service")
    await two.mesh.operator("ca", "revoke", "workload", "shop/pod")  # heard of before what follows
    for change in (
        _policy("AuthorizationPolicy", "elsewhere", {"action": "DENY", "rules": [{"to": _port(1)}]}),
        _policy("PeerAuthentication", "elsewhere", {"selector": ELSEWHERE, "mtls": STRICT}),
        _policy("AuthorizationPolicy", "passes", {"action": "ALLOW", "rules": [{"to": _port(PORT)}]}),
        workload("other", "one", {"uid": 64009}),
    ):
        await two.apply(change)
        await _goes_on(talk)
    (live,) = (await two.ask(two.one, "connections"))["live"]
    assert not live["source"].get("workload")
    await two.apply(_policy("PeerAuthentication", "all", {"mtls": STRICT}))
    with trio.fail_after(10):
        assert await talk.wait() != 0
    assert "ConnectionResetError" in talk.output()
    assert [c["verdict"] for c in await _told(unit, "no workload's", 1)] == ["allowed"]
    closed = (await two.ask(two.two, "connections"))["closed"]
    assert [(c["verdict"], "without an identity" in c["reason"]) for c in closed] == [("refused", True)]


async def _talk_unseen(unit: Unit, cgroup: str) -> Process:
    """A program that talks to the unit's server over one connection, of a cgroup that the supervisor has not seen."""
    process = unit.two.one.process
    assert process
    process.signal(signal.SIGSTOP)
    try:
        create_cgroup(cgroup)
        place = Place(unit.two.one.machine.namespace, cgroup=cgroup)
        talk = unit.two.lab.start("talk", place, [SYSTEM_PYTHON, "-c", TALK, unit.address, str(PORT)])
        await _goes_on(talk)
    finally:
        process.signal(signal.SIGCONT)
    assert await unit.resolved() == 1
    return talk


async def _goes_on(talk: Process) -> None:
    heard = talk.output().count("heard")
    await talk.until(lambda: talk.output().count("heard") > heard + 1, "hear more", 10)


def _policy(kind: str, name: str, spec: dict[str, Any]) -> msgspec.Raw:
    return msgspec.Raw(json.dumps({"kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec}))


def _port(number: int) -> list[dict[str, Any]]:
    return [{"operation": {"ports": [number]}}]
