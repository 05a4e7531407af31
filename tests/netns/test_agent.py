"""An agent's life on a real machine: enrolment, what holds when it goes, what comes back, what is one workload's own
problem."""

import json
import os
import re
import signal
from collections.abc import AsyncIterator, Awaitable
from functools import partial
from pathlib import Path

import pytest
import trio
from pyroute2.iproute import IPRoute

from agent.lab import programs
from agent.lab.mesh import Node
from agent.lab.namespace import Namespace
from agent.lab.place import Place, create_cgroup, remove_cgroup
from agent.lab.topology import _addresses, _awaken
from redirect.cgroup import mount_point
from tests.netns.node import CAPTURED, Pair, pair, soon, workload
from tests.netns.traffic import dial


@pytest.fixture
async def two() -> AsyncIterator[Pair]:
    async with pair() as made:
        yield made


async def mtls(p: Pair) -> int:
    """Connections that node `two` has got by tunnel."""
    answer = await p.ask(p.two, "connections")
    return sum(c["security"] == "mtls" for c in (*answer["live"], *answer["closed"]))


@pytest.mark.alone
async def test_a_label_starts_and_ends_capture(two: Pair) -> None:
    assert await two.talk() == CAPTURED
    assert await mtls(two) == 0
    assert await two.rules(two.one.machine) == ""
    started = trio.current_time()
    await two.enrol("web")
    assert trio.current_time() - started < 1
    assert await two.captured(two.one) == {"shop/web": 0}
    await two.enrol("api")
    assert await two.talk() == CAPTURED
    assert await soon(lambda: _equals(mtls(two), 1))
    assert await two.captured(two.one) == {"shop/web": 1}
    started = trio.current_time()
    await two.enrol("web", value=None)
    assert trio.current_time() - started < 1
    assert await two.rules(two.one.machine) == ""
    assert await two.talk() == CAPTURED
    assert await mtls(two) == 1
    certificates = (await two.ask(two.one, "certificates"))["rows"]
    assert [c["identity"] for c in certificates] == ["spiffe://demo.example/node/one"]
    assert list((two.one.directory / "state" / "leaves").iterdir()) == []


async def _equals_later(two: Pair, count: int) -> bool:
    return await mtls(two) == count


async def _equals(value: Awaitable[object], expected: object) -> bool:
    return await value == expected


async def test_captured_means_held(two: Pair) -> None:
    """Stopped, killed, and started again with the centre gone."""
    await two.enrol()
    assert await two.talk() == CAPTURED
    assert two.mesh.process
    await two.mesh.process.end()
    for end in (signal.SIGTERM, signal.SIGKILL):
        process = two.one.process
        assert process
        process.signal(end)
        await process.wait()
        held = await two.rules(two.one.machine)
        assert "from/shop/web" in held
        carried = await mtls(two)
        while await two.talk():
            # A killed agent's worker needs a moment to notice; until then it carries, and nothing goes past it.
            assert await soon(partial(_equals_later, two, carried := carried + 1))
        await two.mesh.start_agent(two.one)
        assert await soon(lambda: _equals(two.talk(), CAPTURED))
        assert (await two.nft(two.one.machine, "list", "tables")).split() == ["table", "inet", "culvert"]
        port = re.findall(r'redirect to :(\d+) comment "captured"', held)
        assert port == re.findall(r'redirect to :(\d+) comment "captured"', await two.rules(two.one.machine))
    status = await two.ask(two.one, "status")
    assert not status["connected"]
    assert "cannot be reached" in status["centre_problem"] or "cannot be called" in status["centre_problem"]
    assert (status["ready"], status["workloads"]) == (True, 1)


async def test_a_start_that_fails_leaves_the_rules(two: Pair) -> None:
    await two.enrol()
    assert two.one.process
    await two.one.process.end()
    squatter = two.lab.start("squatter", Place(two.one.machine.namespace), programs.greeter("0.0.0.0", 15008, "mine"))
    await squatter.listening(15008)
    ran = await two.mesh.try_on(two.one, "agent", "run")
    assert ran.status == 1
    assert "15008" in ran.errors
    assert "another process has it" in ran.errors
    assert "from/shop/web" in await two.rules(two.one.machine)
    assert await two.talk() == ""


async def test_capture_off_stays_off_until_it_is_on(two: Pair) -> None:
    await two.enrol()
    assert "stays off" in await two.mesh.on(two.one, "capture", "off")
    assert await two.rules(two.one.machine) == ""
    assert await two.talk() == CAPTURED
    assert await mtls(two) == 0
    assert two.one.process
    await two.one.process.end()
    await two.mesh.start_agent(two.one)
    assert await soon(lambda: _ready(two, "capture is switched off"))
    assert await two.rules(two.one.machine) == ""
    assert "1 workloads are captured" in await two.mesh.on(two.one, "capture", "on")
    assert await two.talk() == CAPTURED
    assert await soon(lambda: _equals(mtls(two), 1))
    assert await soon(lambda: _ready(two, "ready"))


async def test_capture_is_off_also_where_nothing_is_known_of_the_mesh(two: Pair) -> None:
    """An agent that lost what it knew holds what its former life captured. Not when the operator says otherwise."""
    await two.enrol()
    assert two.mesh.process
    assert two.one.process
    await two.mesh.process.end()
    await two.one.process.end()
    (two.one.directory / "state" / "view.json").unlink()
    await two.mesh.start_agent(two.one)
    assert "from/shop/web" in await two.rules(two.one.machine)
    assert await two.talk() == ""
    assert "stays off" in await two.mesh.on(two.one, "capture", "off")
    assert await two.rules(two.one.machine) == ""
    assert await two.talk() == CAPTURED
    await two.mesh.on(two.one, "capture", "on")
    leaves = two.one.directory / "state" / "leaves"
    assert len(list(leaves.iterdir())) == 1


async def _ready(two: Pair, text: str) -> bool:
    script = "import http.client as h; c = h.HTTPConnection('127.0.0.1', 15021); c.request('GET', '/readyz'); "
    script += "r = c.getresponse(); print(r.status, r.read().decode())"
    ran = await programs.run(Place(two.one.machine.namespace), [programs.SYSTEM_PYTHON, "-c", script])
    said = ran.output.decode()
    return text in said and said.startswith("200" if text == "ready" else "503")


async def test_capture_off_lets_tunnels_arrive(two: Pair) -> None:
    """The caller's node still captures; here nothing is, so no address can be borrowed either."""
    await two.enrol()
    assert await two.talk() == CAPTURED
    await two.mesh.on(two.two, "capture", "off")
    assert await soon(lambda: _equals(two.talk(), "220 api greets 10.77.0.3\r\nho"))
    await two.mesh.on(two.two, "capture", "on")
    assert await soon(lambda: _equals(two.talk(), CAPTURED))


async def test_leaving(two: Pair) -> None:
    await two.enrol("web", "api", "pod")
    assert "has left demo.example" in await two.mesh.on(two.two, "agent", "leave")
    assert await two.mesh.gone(two.two)
    assert await two.rules(two.two.machine) == ""
    assert await two.rules(two.pod) == ""
    left = [p for p in (two.two.directory / "state").rglob("*") if p.is_file()]
    assert left == []
    # And a node whose agent does not run.
    assert two.one.process
    await two.one.process.kill()
    assert "from/shop/web" in await two.rules(two.one.machine)
    assert "has left demo.example" in await two.mesh.on(two.one, "agent", "leave")
    assert await two.rules(two.one.machine) == ""
    ran = await two.mesh.try_on(two.one, "agent", "run")
    assert "has not joined a mesh" in ran.errors


async def test_capture_can_be_switched_off_without_an_agent(two: Pair) -> None:
    await two.enrol()
    assert two.one.process
    await two.one.process.kill()
    assert await two.talk() == ""
    await two.mesh.on(two.one, "capture", "off")
    assert await two.talk() == CAPTURED
    ran = await two.mesh.try_on(two.one, "capture", "status")
    assert ran.status == 1
    assert "no agent answers" in ran.errors


async def test_a_namespace_of_its_own_is_replaced(two: Pair) -> None:
    await two.enrol("web", "pod")
    for _ in range(2):
        server = two.lab.start("pod", Place(two.pod.namespace), programs.greeter(two.pod.address, 7000, "pod"))
        await server.listening(7000)
        assert await soon(lambda: _equals(two.talk(None, two.pod.address, 7000), "220 pod greets 10.77.0.2\r\nho"))
        await server.end()
        _replace(two)


def _replace(two: Pair) -> None:
    """A container's restart: the same name and address, another namespace."""
    pod, machine = two.pod, two.two.machine
    pod.namespace.remove()
    pod.namespace.create()
    pod.namespace.run(_awaken)
    two.lab.topology._cable(
        machine.namespace, f"again{len(two.lab.processes)}"[:15], pod.namespace, "eth0", bridge="pods"
    )
    pod.namespace.run(lambda: _addresses("eth0", pod.address, pod.address6))

    def route() -> None:
        with IPRoute() as ip:
            ip.route("add", dst="default", gateway="10.77.3.1")

    pod.namespace.run(route)


async def test_a_namespace_that_is_not_there_is_that_workloads_problem(two: Pair) -> None:
    await two.apply(workload("ghost", "one", {"netns": "nowhere"}, address="10.77.9.9"))
    await two.enrol("web", "api", "ghost")
    assert await two.talk() == CAPTURED
    assert await two.captured(two.one) == {"shop/web": 1}
    answer = await two.ask(two.one, "workloads")
    assert any("network namespace /run/netns/nowhere" in problem for problem in answer["problems"])
    central = (await two.mesh.status()).nodes
    assert any("nowhere" in problem for n in central for problem in n.problems)
    # It is captured as soon as it appears.
    late = Namespace("nowhere")
    late.create()
    try:
        late.run(_awaken)
        assert await soon(lambda: _has(two, "shop/ghost"))
    finally:
        late.remove()


async def _has(two: Pair, name: str) -> bool:
    return name in await two.captured(two.one)


async def test_a_unit_that_restarts_keeps_its_identity(two: Pair) -> None:
    if mount_point() is None:
        pytest.skip("no cgroup v2 is mounted here")
    unit = two.lab.cgroup("unit")
    await two.apply(workload("unit", "one", {"cgroup": unit}))
    await two.enrol("api", "unit")
    place = Place(two.one.machine.namespace, 64003, unit)
    for count in range(1, 4):
        assert await two.talk(place) == CAPTURED
        said = await two.ask(two.one, "connections")
        whose = [c["source"]["workload"] for c in (*said["live"], *said["closed"])]
        assert whose == ["shop/unit"] * count  # by its rule, or named by the resolver where that is not there yet
        remove_cgroup(unit)
        create_cgroup(unit)


async def test_a_killed_worker_is_replaced(two: Pair) -> None:
    await two.enrol()
    assert await two.talk() == CAPTURED
    worker = await _worker(two)
    status = Path(f"/proc/{worker}/status").read_text()
    facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(facts["Uid"].split()) == {"64990"}
    assert facts["NoNewPrivs"] == "1"
    assert int(facts["CapEff"], 16) == 1 << 13  # CAP_NET_RAW
    os.kill(worker, signal.SIGKILL)
    assert await two.talk() == CAPTURED  # waits in the listening socket's queue
    answer = await two.ask(two.one, "status")
    assert (answer["workers"], answer["worker_restarts"]) == (1, 1)


async def _worker(two: Pair) -> int:
    assert two.one.process
    argv = ["pgrep", "-P", str(two.one.process.pid), "culvert-worker"]
    return int((await programs.run(Place(two.one.machine.namespace), argv)).output)


async def test_every_command_speaks_to_people_and_programs(two: Pair) -> None:
    await two.enrol()
    await two.talk()
    for topic in ("status", "workloads", "certificates", "connections", "tunnels", "capture status", "capture plan"):
        people = await two.mesh.on(two.one, *topic.split())
        assert people.strip()
        assert max(map(len, people.splitlines())) <= 80 or topic == "capture plan", people
        assert json.loads(await two.mesh.on(two.one, *topic.split(), "-o", "json"))
    two.one.settings["COLUMNS"] = "250"
    assert "spiffe://demo.example/ns/shop/sa/web" in await two.mesh.on(two.one, "connections", "-o", "wide")
    ran = await two.mesh.try_on(two.one, "agent", "run")
    assert ran.status == 1
    assert "another agent runs on this machine" in ran.errors
    log = [json.loads(line) for line in (two.one.directory / "access.log").read_text().splitlines()]
    other = [json.loads(line) for line in (two.two.directory / "access.log").read_text().splitlines()]
    assert [e["trace"] for e in log] == [e["trace"] for e in other]
    assert [e["sent"] for e in log] == [e["sent"] for e in other] == [2]
    ran = await programs.run(Place(two.one.machine.namespace), programs.get("http://127.0.0.1:15020/metrics"))
    assert 'istio_tcp_connections_opened_total{connection_security_policy="mutual_tls"' in ran.output.decode()


async def test_a_taken_capture_port_is_gone_round(two: Pair) -> None:
    squatter = two.lab.start("squatter", Place(two.one.machine.namespace), programs.greeter("127.0.0.1", 15100, "mine"))
    await squatter.listening(15100)
    await two.apply(workload("other", "one", {"uid": 64005}))
    await two.enrol("api", "web", "other")
    assert "shop/other" in await two.captured(two.one)
    assert await soon(lambda: _has(two, "shop/web"))
    assert await two.talk() == CAPTURED
    assert await soon(lambda: _without_problems(two, two.one))
    log = two.one.process.log.read_text() if two.one.process else ""
    assert "cannot listen on 127.0.0.1 port 15100" in log
    assert "another process has it" in log


async def test_a_kernel_that_refuses_is_asked_again(two: Pair) -> None:
    """Without loopback the kernel takes no routes of ours."""
    lo = ["ip", "link", "set", "lo"]
    pod = Place(two.pod.namespace)
    assert (await programs.run(pod, [*lo, "down"])).ok
    await two.enrol("web", "api", "pod")
    assert any("ip link set lo up" in p for p in (await two.ask(two.two, "status"))["problems"])
    assert await two.talk() == CAPTURED
    assert (await programs.run(pod, [*lo, "up"])).ok
    assert await soon(lambda: _without_problems(two, two.two))
    assert await two.talk(Place(two.pod.namespace)) == "220 api greets 10.77.3.10\r\nho"


async def test_where_cgroups_cannot_be_told_apart_the_rest_is_captured(two: Pair) -> None:
    """No kernel looks so deep; an old one refuses every level."""
    await two.apply(workload("deep", "one", {"cgroup": "/".join("a" * 300)}))
    await two.enrol("web", "api", "deep")
    problems = (await two.ask(two.one, "status"))["problems"]
    assert any("what they send is not captured: the kernel refused" in p for p in problems), problems
    assert await two.talk() == CAPTURED
    assert (await two.captured(two.one)).keys() == {"shop/web", "shop/deep"}


async def _without_problems(two: Pair, node: Node) -> bool:
    return not (await two.ask(node, "status")).get("problems")


async def test_a_stopping_agent_lets_connections_end(two: Pair) -> None:
    two.one.settings["CULVERT_AGENT_DRAIN"] = "20s"
    assert two.one.process
    await two.one.process.end()
    await two.mesh.start_agent(two.one)
    await two.enrol()
    place = Place(two.one.machine.namespace, 64001)
    stream = await dial(place, two.two.machine.address, 9090)
    assert (await stream.receive_some()).startswith(b"220")
    two.one.process.signal(signal.SIGTERM)
    await stream.send_all(b"still")
    assert await stream.receive_some() == b"still"
    assert two.one.process.running
    await stream.send_eof()
    assert await stream.receive_some() == b""
    with trio.fail_after(5):
        assert await two.one.process.wait() == 0
    await stream.aclose()
    log = [json.loads(line) for line in (two.one.directory / "access.log").read_text().splitlines()]
    assert [(e["sent"], e["verdict"]) for e in log] == [(5, "allowed")]
    assert "from/shop/web" in await two.rules(two.one.machine)


async def test_several_workers_share_the_work(two: Pair) -> None:
    two.one.settings["CULVERT_AGENT_WORKERS"] = "3"
    assert two.one.process
    await two.one.process.end()
    await two.mesh.start_agent(two.one)
    await two.enrol()
    assert await soon(lambda: _workers(two, 3))
    place = Place(two.one.machine.namespace, 64001)
    streams = []
    for _ in range(30):  # one after another: the server's queue has room for five
        streams.append(stream := await dial(place, two.two.machine.address, 9090))
        assert (await stream.receive_some()).startswith(b"220")
    live = (await two.ask(two.one, "connections"))["live"]
    assert len({c["id"] for c in live}) == 30
    for stream in streams:
        await stream.aclose()
    assert await soon(lambda: _closed(two, 30))
    assert (await two.captured(two.one)) == {"shop/web": 30}


async def _workers(two: Pair, count: int) -> bool:
    return (await two.ask(two.one, "status"))["workers"] == count


async def _closed(two: Pair, count: int) -> bool:
    return len((await two.ask(two.one, "connections"))["closed"]) == count


@pytest.mark.slow
async def test_certificates_are_renewed_and_end_without_a_centre() -> None:
    async with pair() as two:
        await two.shorten(8)
        await two.enrol()
        place = Place(two.one.machine.namespace, 64001)
        stream = await dial(place, two.two.machine.address, 9090)
        greeting = await stream.receive_some()
        first = await _serial(two)
        assert await soon(lambda: _not(_serial(two), first), 20)
        assert await two.talk() == CAPTURED
        await stream.send_all(greeting)
        assert await stream.receive_some() == greeting
        assert two.mesh.process
        await two.mesh.process.kill()
        assert await soon(lambda: _equals(_status(two), "expired"), 20)
        await trio.sleep(1)  # a certificate's last second counts
        os.kill(await _worker(two), signal.SIGKILL)  # and its open tunnels, which were made in time
        assert await two.talk() == ""
        problems = (await two.ask(two.one, "status"))["problems"]
        assert any("no valid certificate" in p for p in problems)
        assert any("sa/web ended at" in p and "is not renewed: the centre" in p for p in problems)
        assert two.one.process
        assert await soon(lambda: _alarmed(two.one), 20)
        assert "from/shop/web" in await two.rules(two.one.machine)
        await two.mesh.start_centre()
        assert await soon(lambda: _equals(two.talk(), CAPTURED), 60)
        await stream.aclose()


async def _alarmed(node: Node) -> bool:
    assert node.process
    return any('"expiry"' in x and "sa/web" in x and "ended" in x for x in node.process.output().splitlines())


async def _not(value: Awaitable[object], other: object) -> bool:
    return await value != other


async def _serial(two: Pair) -> str:
    return str((await two.ask(two.one, "certificates"))["rows"][1]["serial"])


async def _status(two: Pair) -> str:
    return str((await two.ask(two.one, "certificates"))["rows"][1]["status"])
