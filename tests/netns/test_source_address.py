"""Whom an application sees as its caller: the caller itself, the agent, or what a PROXY header says."""

import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from agent.lab.place import Place
from tests.netns import traffic
from tests.netns.test_exclusions import said
from tests.netns.town import STRANGER, Town
from tests.redirect.test_borrow import needs_port_range

GET = b"GET / HTTP/1.0\r\n\r\n"


@pytest.mark.parametrize("server", ["db", "mail", "store", "six"])
@pytest.mark.parametrize("caller", ["web", "front"])
async def test_preserved_or_the_agents(town: Town, server: str, caller: str) -> None:
    source, destination = town[caller], town[server]
    async with traffic.serving(destination.server, destination.address, destination.port, traffic.echo) as served:
        assert await traffic.ask(source.place, destination.address, destination.port) == b"ping"
        async with said(town, server, "sourceAddress: agent"):
            assert await traffic.ask(source.place, destination.address, destination.port) == b"ping"
            record = await town.record("two", direction="inbound", source_kept=False, state="closed")
            assert record["destination"]["workload"] == destination.workload
        assert await traffic.ask(source.place, destination.address, destination.port) == b"ping"
    first, agent, last = served.peers
    assert first == last
    if source.address.count(":") == destination.address.count(":"):
        assert first == source.address
    # The agent calls from the workload's own machine or namespace.
    assert agent in (destination.address, town.two.address, "127.0.0.1", "::1", town.two.address6)


@needs_port_range
@pytest.mark.parametrize(("server", "caller"), [("db", "web"), ("store", "front"), ("mail", "web")])
async def test_from_its_own_port_too(town: Town, server: str, caller: str) -> None:
    destination, ports = town[server], []

    async def note(stream: trio.SocketStream) -> None:
        ports.append(stream.socket.getpeername()[1])
        await traffic.echo(stream)

    async with traffic.serving(destination.server, destination.address, destination.port, note):
        stream = await traffic.dial(town[caller].place, destination.address, destination.port)
        async with stream:
            await stream.send_all(b"ping")
            assert await stream.receive_some() == b"ping"
            assert ports == [stream.socket.getsockname()[1]]


HAPROXY = """\
defaults
  mode http
  timeout client 5s
  timeout server 5s
  timeout connect 5s
frontend all
  bind {address}:{port} accept-proxy
  http-request set-var-fmt(txn.ends) "%[src] %[src_port] %[dst] %[dst_port]"
  http-request return status 200 content-type text/plain lf-string "%[var(txn.ends)] %[fc_pp_authority]"
"""
NGINX = """\
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
  access_log off;
  client_body_temp_path {directory}/a; proxy_temp_path {directory}/b; fastcgi_temp_path {directory}/c;
  uwsgi_temp_path {directory}/d; scgi_temp_path {directory}/e;
  server {{
    listen {address}:{port} proxy_protocol;
    return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port";
  }}
}}
"""


@asynccontextmanager
async def serving(town: Town, name: str, program: str, tmp_path: Path) -> AsyncIterator[None]:
    """HAProxy or nginx in a resident's place, until the block is left."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed: apt-get install {program}")
    resident = town[name]
    file = tmp_path / f"{program}.conf"
    text = {"haproxy": HAPROXY, "nginx": NGINX}[program]
    file.write_text(text.format(address=resident.address, port=resident.port, directory=tmp_path))
    argv = ["haproxy", "-db", "-f", str(file)] if program == "haproxy" else ["nginx", "-c", str(file)]
    # As root: what is captured on its way in is told by the port, and the files are the test's own.
    process = town.lab.start(f"{program}-{name}", Place(resident.place.namespace), argv)
    try:
        await process.listening(resident.port)
        yield
    finally:
        await process.end()
        town.lab.processes.remove(process)


async def seen(place: Place, address: str, port: int) -> tuple[list[str], str]:
    """What the server says of its caller, and the caller's own address and port."""
    stream = await traffic.dial(place, address, port)
    async with stream:
        own = stream.socket.getsockname()
        await stream.send_all(GET)
        answer = await traffic.read_all(stream)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head, answer
    return body.decode().split(), f"{own[0]} {own[1]}"


@pytest.mark.parametrize("program", ["haproxy", "nginx"])
@pytest.mark.parametrize(("server", "caller"), [("db", "web"), ("store", "front"), ("db", "store"), ("db", "far")])
async def test_a_proxy_header_that_real_servers_read(
    town: Town, program: str, server: str, caller: str, tmp_path: Path
) -> None:
    destination = town[server]
    place = Place(town.far.namespace) if caller == "far" else town[caller].place
    identity = [] if caller == "far" else [town[caller].identity]
    async with serving(town, server, program, tmp_path), said(town, server, "sourceAddress: proxy-protocol"):
        body, own = await seen(place, destination.address, destination.port)
        assert body[:2] == own.split()
        assert body[2:4] == [destination.address, str(destination.port)]
        if program == "haproxy":
            assert body[4:] == identity
        record = await town.record(
            "two", direction="inbound", destination__workload=destination.workload, state="closed", sent=len(GET)
        )
        assert record["preface"] > 28 + (2 * len(identity[0]) if identity else -1)
        assert record["source_kept"] is False


async def test_the_header_comes_first_when_the_server_speaks_first(town: Town) -> None:
    """And whole, before the first byte of the caller, which may be long on its way by then."""
    db, heard = town["db"], []

    async def listen(stream: traffic.trio.SocketStream) -> None:
        await stream.send_all(b"220 hello\r\n")
        heard.append(await traffic.read_all(stream))
        await stream.send_eof()

    async with (
        traffic.serving(db.server, db.address, db.port, listen),
        said(town, "db", "sourceAddress: proxy-protocol"),
    ):
        for caller in ("web", "store"):
            text = b"x" * 300_000
            assert await traffic.ask(town[caller].place, db.address, db.port, text) == b"220 hello\r\n"
            data = heard.pop()
            assert data.startswith(b"\r\n\r\n\0\r\nQUIT\n\x21\x11")
            assert data.endswith(f"{town[caller].identity}".encode() + text)


async def test_a_skip_on_the_way_in_is_no_way_to_make_a_header_up(town: Town) -> None:
    """Said by the workload it is refused at once; said by the mesh it does not hold."""
    db = town["db"]
    both = f"sourceAddress: proxy-protocol, capture: {{in: {{skip: {{ports: [{db.port}]}}}}}}"
    ran = await town.mesh.try_operator("apply", "-f", "-", stdin=db.yaml().replace("spec: {", f"spec: {{{both}, "))
    assert not ran.ok
    assert "capture.in.skip and sourceAddress proxy-protocol exclude each other" in ran.errors
    async with said(town, "db", "sourceAddress: proxy-protocol"), town.mode():
        await town.mesh.apply(
            "kind: Mesh\nmetadata: {name: mesh}\nspec: {trustDomain: demo.example, "
            f"capture: {{in: {{skip: {{ports: [{db.port}]}}}}}}}}"
        )
        status = await town.mesh.status()
        (two,) = (n for n in status.nodes if n.name == "two")
        assert [p for p in two.problems if "a caller who is let past the agent could make up" in p]
        async with traffic.serving(db.server, db.address, db.port, traffic.echo):
            answer = await traffic.ask(Place(town.two.namespace, STRANGER), db.address, db.port)
            assert answer.startswith(b"\r\n\r\n\0\r\nQUIT\n")
