"""A container of Podman on a bridge that dials the mesh as soon as it runs, and an ear on the wire."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path

import trio

from agent.lab import programs
from agent.lab.place import Place
from agent.lab.sniffer import Sniffer, sniff
from redirect.names import VOUCHED
from redirect.ruleset import Key
from tests.agent.discovery.podman import Failed, Podman, podman
from tests.netns.node import API, Pair, pair, soon, workload
from tests.netns.traffic import echo, serving

PORT = 9191
SERVED, STRANGER = 7001, 64999
GREETING = "hello"
MARKER = "restarted-containers-say-this-in-confidence"
MAY = '{{"kind": "Node", "metadata": {{"name": "{}"}}, "spec": {{"discovery": {}}}}}'
SUBNET = "10.77.2.0/24"
"""What the wire routes to machine one."""
_DIAL = """
# A shell and nc, because they dial some milliseconds after the container has started.
cd "$(mktemp -d)"
i=0
while [ $i -lt {attempts} ]; do
    (echo {marker} | timeout {wait} nc -w {wait} {address} {port} >$i.said 2>$i.error) &
    i=$((i + 1))
    [ $i -lt 20 ] || usleep 1000
done
wait
carried=$(cat *.said | grep -c {marker})
refused=$(cat *.error | grep -c -e refused -e reset)
echo '{{"attempted": '$i', "carried": '$carried', "refused": '$refused'}}' >/out/new
mv /out/new /out/told
"""
_KNOCK = """
import json, os, select, socket, sys, time
port, enough, *addresses = sys.argv[1:]
attempts, heard = 0, 0
while not os.path.exists(enough):
    calls = []
    for address in addresses:
        call = socket.socket()
        call.setblocking(False)
        try:
            call.connect((address, int(port)))
        except BlockingIOError:
            calls.append(call)
        except OSError:
            call.close()
        attempts += 1
    soon = time.monotonic() + 0.02
    while (left := soon - time.monotonic()) > 0:
        for call in select.select(calls, [], [], left)[0]:
            try:
                heard += bool(call.recv(100))
            except OSError:
                pass
            calls.remove(call)
            call.close()
    for call in calls:
        call.close()
print(json.dumps({"attempts": attempts, "heard": heard}))
"""
_EAGER = "for each in /proc/sys/net/ipv4/neigh/*/retrans_time_ms; do echo 10 >$each; done"
"""That a machine asks for a new station's card all the time: else strangers come too late to find it unguarded."""
REST, AFTER = 0.75, 3.0
"""Seconds that strangers go on calling behind each restart, and behind the last of all."""
STRICT = '{"kind": "Mesh", "metadata": {"name": "mesh"}, "spec": {"trustDomain": "demo.example", "mode": "STRICT"}}'
WAIT = 12
"""Seconds after which an attempt is given up, and is neither carried nor refused: more than the kernel's first three
tries take."""


@dataclass
class Box:
    """The workload found/box-one: container `box` on the bridge of machine one, which calls shop/api of machine two."""

    two: Pair
    engine: Podman
    network: str
    sniffer: Sniffer
    out: Path
    said: list[dict[str, int]] = field(default_factory=list)

    async def run(self, name: str = "box", attempts: int = 60, address: str = "", **marks: str) -> dict[str, int]:
        """Start a container, at an address of its own if one is given; what became of its attempts."""
        at = (f"--ip={address}",) if address else ()
        where = (f"--network={self.network}", f"--volume={self.out}:/out", "--tmpfs=/tmp", *at)
        serve = f"exec nc -ll -p {SERVED} -e /bin/busybox echo {GREETING}"
        command = ("sh", "-c", self._script(attempts) + serve)
        await self._engine(lambda: self.engine.run(name, *where, command=command, **marks))
        return await self.told()

    async def again(self, name: str, attempts: int = 10) -> dict[str, int]:
        """What becomes of attempts of a container that runs."""
        command = ("exec", name, "/bin/busybox", "sh", "-c", self._script(attempts))
        await self._engine(lambda: self.engine(*command))
        return await self.told()

    def _script(self, attempts: int) -> str:
        address = self.two.two.machine.address
        return _DIAL.format(attempts=attempts, marker=MARKER, wait=WAIT, address=address, port=PORT)

    async def restart(self, name: str = "box") -> dict[str, int]:
        """What became of the attempts of the container that has been restarted."""
        await self._engine(lambda: self.engine("restart", "--time", "0", name))
        return await self.told()

    async def start(self, name: str = "box") -> dict[str, int]:
        """What became of the attempts of a container that was stopped."""
        await self._engine(lambda: self.engine("start", name))
        return await self.told()

    async def _engine(self, call: Callable[[], object]) -> None:
        await trio.to_thread.run_sync(call)

    async def served(self) -> bool:
        """Whether its program serves, as itself sees it, or does soon."""

        async def there() -> bool:
            words = ("exec", "box", "/bin/busybox", "nc", "-w", "5", "127.0.0.1", str(SERVED))
            try:
                return await trio.to_thread.run_sync(lambda: self.engine(*words)) == GREETING
            except Failed:
                return False

        return await soon(there, 20)

    async def heard(self) -> tuple[str, str]:
        """What the container says to a stranger, on machine two and on its own."""
        found = await trio.to_thread.run_sync(lambda: json.loads(self.engine("inspect", "box")))
        (at,) = found[0]["NetworkSettings"]["Networks"].values()
        heard = []
        for node in (self.two.two, self.two.one):
            ran = await programs.run(
                Place(node.machine.namespace, STRANGER), programs.hear(at["IPAddress"], SERVED, ""), 10
            )
            assert ran.ok or "refused" in ran.errors or "reset" in ran.errors, ran.errors
            heard.append(ran.output.decode().strip())
        return heard[0], heard[1]

    @asynccontextmanager
    async def knocking(self, *addresses: str) -> AsyncIterator[dict[str, int]]:
        """What strangers on both machines get who call these addresses all the time, for the block and a little longer:
        how many attempts, and how many of them were answered by a container's program. Told at its end."""
        enough = self.two.lab.directory / "enough"
        words = [programs.SYSTEM_PYTHON, "-c", _KNOCK, str(SERVED), str(enough), *addresses]
        found = {"attempts": 0, "heard": 0}

        async def knock(place: Place) -> None:
            ran = await programs.run(place, words, 60)
            assert ran.ok, ran.errors
            for key, count in json.loads(ran.output).items():
                found[key] += count

        async with trio.open_nursery() as nursery:
            for node in (self.two.one, self.two.two):
                nursery.start_soon(knock, Place(node.machine.namespace, STRANGER))
            yield found
            await trio.sleep(AFTER)
            enough.touch()

    async def knocked_at_while_it_restarts(self, times: int, address: str = "") -> dict[str, int]:
        """What strangers got who called it all the time, under STRICT: at the address that it keeps, or at all that it
        may have."""
        await self.two.mesh.apply(STRICT)

        async def strict() -> bool:
            return await self.heard() == ("", "")

        assert await soon(strict)
        await programs.run(Place(self.two.one.machine.namespace), ["sh", "-c", _EAGER])
        addresses = [address] if address else [str(a) for a in list(ip_network(SUBNET).hosts())[1:40]]
        async with self.knocking(*addresses) as found:
            for _ in range(times):
                with trio.fail_after(6):
                    await self.restart()
                await trio.sleep(REST)
        return found

    async def known(self, name: str) -> bool:
        """Whether the machine's table knows a container to be nobody's, or does soon."""
        found = await trio.to_thread.run_sync(lambda: json.loads(self.engine("inspect", name)))
        (at,) = found[0]["NetworkSettings"]["Networks"].values()
        listing = ["nft", "list", "set", "inet", "culvert", VOUCHED[Key.STATION4]]

        async def there() -> bool:
            ran = await programs.run(Place(self.two.one.machine.namespace), listing)
            return f"{at['IPAddress']} ." in ran.output.decode()

        return await soon(there, 20)

    async def told(self) -> dict[str, int]:
        """What the next container has to say."""

        told = self.out / "told"

        async def there() -> bool:
            return told.exists()

        assert await soon(there, WAIT + 20), "the container does not end its attempts"
        found: dict[str, int] = json.loads(told.read_text())
        told.unlink()
        self.said.append(found)
        return found

    async def captured(self) -> bool:
        """Whether the container is captured, or is soon."""

        async def there() -> bool:
            return "found/box-one" in await self.two.captured(self.two.one)

        return await soon(there)

    def seen(self) -> tuple[int, int]:
        """What the link has shown since the last time: payload bytes in clear, and connections outside of tunnels."""
        self.sniffer.drain()
        assert self.sniffer.lost == 0
        leaks = self.sniffer.leaks
        self.sniffer.restart(MARKER.encode())
        return leaks.clear, sum(flow[3] == PORT for flow in leaks.opened)


def total(said: list[dict[str, int]]) -> dict[str, int]:
    """All of it added up."""
    return {key: sum(one[key] for one in said) for key in ("attempted", "carried", "refused")}


@asynccontextmanager
async def open_box(
    fail_mode: str = "closed", *, serves: bool = False, attempts: int = 60, address: str = "", **settings: str
) -> AsyncIterator[Box]:
    """The machine and its engine, with the right to register containers, and the container `box`, enrolled and
    captured, `serves` says whether also at its port; `attempts` is how often it dials when it starts, and `address` one
    that it keeps; `settings` are further ones of the machine's agent."""
    async with pair(runs=("two",)) as two, sniff(two.lab.topology, two.one.machine.port) as sniffer:
        with podman(tuple(Place(two.one.machine.namespace).command([]))) as engine, engine.network(SUBNET) as network:
            await trio.to_thread.run_sync(engine.serve)
            two.one.settings["CULVERT_AGENT_DISCOVERY_CONTAINERS"] = str(engine.socket)
            two.one.settings.update(settings)
            await two.mesh.start_agent(two.one)
            may = json.dumps({"namespaces": ["found"], "addresses": [SUBNET]})
            await two.mesh.apply(MAY.format("one", may))
            await two.apply(workload("api", "two", {"uid": API}, PORT, source_address="agent"))
            await two.enrol("api")
            out = engine.directory / "out"
            out.mkdir()
            async with serving(Place(two.two.machine.namespace, API), two.two.machine.address, PORT, echo):
                made = Box(two, engine, network, sniffer, out)
                ports = {"ports": str(SERVED)} if serves else {}
                said = await made.run(
                    "box", attempts, address, namespace="found", labels="mesh=on", fail_mode=fail_mode, **ports
                )
                assert said["carried"] + said["refused"] == said["attempted"], said
                assert await made.captured()
                sniffer.restart(MARKER.encode())
                yield made
