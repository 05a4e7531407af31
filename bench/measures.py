"""One measurement each: a name, a load, numbers.

A measurement is given the site it acts on and answers with values; whoever calls it meters it. `cpu` values are CPU
seconds of both ends of the peer together, per unit of what was moved.
"""

import json
import math
import subprocess
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from agent.lab.place import Place
from agent.lab.programs import run
from bench.account import Account, Memory
from bench.meter import Meter
from bench.output import OutputError, Values, read_ab, read_iperf, read_numbers, read_wrk
from bench.programs import command, idle_connections, open_loop
from bench.rig import BULK, HTTP
from bench.samples import Noise

OPEN_LOOP_RATE = 1000
"""Requests a second of the measurement with a fixed rate: Istio's published shape."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a peer is reached: what to dial, from where, and who pays. `sides` are its two ends."""

    host: str
    port: int
    place: Place
    sides: tuple[Account, Account]
    everything: Account

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/"


@dataclass(frozen=True, slots=True)
class Measure:
    """`port` is the server it needs at the far end. `load` is run once for each measurement."""

    name: str
    port: int
    load: Callable[[Site], Awaitable[Values]]
    per: tuple[str, str, float] | None = None
    """(value to add, value to divide by, units): CPU seconds for each `units` of that value."""

    async def take(self, site: Site) -> tuple[Values, Noise]:
        """Measure once. OutputError when the load generator got nowhere."""
        with Meter(site.sides, site.everything) as meter:
            values = await self.load(site)
        if self.per:
            name, count, units = self.per
            if values.get(count):
                values[name] = meter.cpu / values[count] * units
        return values, meter.noise


def wrk(connections: int, seconds: float) -> Measure:
    """Requests over kept connections, as fast as they are answered. wrk takes whole seconds."""
    whole = math.ceil(seconds)

    async def load(site: Site) -> Values:
        line = ["wrk", "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "10s", "--latency", site.url]
        return read_wrk(await _output(site, line, whole + 20))

    return Measure(f"wrk{connections}", HTTP, load, ("cpu_10k", "requests", 1e4))


def ab(requests: int, connections: int) -> Measure:
    """A new connection for each request."""

    async def load(site: Site) -> Values:
        line = ["ab", "-q", "-s", "10", "-n", str(requests), "-c", str(connections), site.url]
        return read_ab(await _output(site, line, 60), requests)

    return Measure("ab", HTTP, load, ("cpu_10k", "requests", 1e4))


def iperf(flows: int, seconds: float) -> Measure:
    """Bulk from client to server."""

    async def load(site: Site) -> Values:
        line = ["iperf3", "-c", site.host, "-p", str(site.port), "-P", str(flows), "-t", f"{seconds:g}", "-J"]
        for _ in range(4):
            try:
                return read_iperf(await _output(site, line, seconds + 30))
            except OutputError as error:
                if "busy" not in str(error):
                    raise
                await trio.sleep(0.5)  # the server has one test at a time and is slow to see the last one's end
        raise OutputError("iperf3: the server stayed busy")

    return Measure(f"iperf{flows}", BULK, load, ("cpu_gb", "bytes", 1e9))


def steady(connections: int, seconds: float, rate: int = OPEN_LOOP_RATE) -> Measure:
    """Requests at a fixed rate; one that is not answered within two seconds after the last was due counts as lost."""

    async def load(site: Site) -> Values:
        line = command(open_loop, site.host, site.port, rate, connections, seconds)
        return read_numbers(await _output(site, line, seconds + 20))

    return Measure(f"steady{connections}", HTTP, load, ("cpu_1k", "requests", 1e3))


def idle(connections: int) -> Measure:
    """Memory with connections that were used once, and CPU while nothing happens. MiB, of both ends."""

    async def load(site: Site) -> Values:
        before = memory(site)
        line = site.place.command(command(idle_connections, site.host, site.port, connections))
        holder = await trio.lowlevel.open_process(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert holder.stdin is not None
        assert holder.stdout is not None
        try:
            with trio.fail_after(60 + connections / 100):
                values = read_numbers(await _line(holder.stdout))
                await trio.sleep(1)
                after = memory(site)
                with Meter(site.sides, site.everything) as meter:
                    await trio.sleep(2)
                await holder.stdin.aclose()
                values |= read_numbers(await _line(holder.stdout))
                await holder.wait()
        except trio.TooSlowError:
            raise OutputError(f"{connections} connections were not open in time") from None
        finally:
            holder.kill()
        values["bad"] += values["lost"]
        return values | {
            "pss": after.pss,
            "rss": after.rss,
            "pss_fresh": before.pss,
            "kib_each": (after.pss - before.pss) * 1024 / connections,
            "cpu_percent": meter.cpu / meter.wall * 100,
        }

    return Measure(f"idle{connections}", HTTP, load)


def memory(site: Site) -> Memory:
    """What both ends hold now."""
    a, b = (side.memory() for side in site.sides)
    return Memory(a.pss + b.pss, a.rss + b.rss)


async def _output(site: Site, argv: list[str], seconds: float) -> str:
    done = await run(site.place, argv, seconds)
    text = done.output.decode(errors="replace")
    # iperf3 and ab report a failure in their output or on stderr, with a status that says nothing more.
    return text if done.ok or _is_json(text) else f"{text}\n{done.errors}"


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


async def _line(stream: trio.abc.ReceiveStream) -> str:
    text = b""
    while not text.endswith(b"\n"):
        data = await stream.receive_some(4096)
        if not data:
            break
        text += data
    return text.decode()
