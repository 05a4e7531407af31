"""nginx's stream module: workers are its worker processes, session resumption is at its default, on.

The module cannot match a SAN: node B takes the common name of the client's certificate.
"""

from pathlib import Path

from bench.peers.proxies import CIPHER, LISTEN, NAME_A, NAME_B, ProxyPair, Side, first_line, which

_MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
_COMMON = """
load_module {module};
daemon off; worker_processes {workers}; pid {d}/nginx.pid; error_log {d}/nginx.err error;
events {{ worker_connections 32768; }}
"""
_NEAR = """
stream {{ server {{
  listen 127.0.0.1:{listen} backlog=4096;
  proxy_ssl on; proxy_ssl_protocols TLSv1.3; proxy_ssl_conf_command Ciphersuites {cipher};
  proxy_ssl_certificate {certs}/{a}.pem; proxy_ssl_certificate_key {certs}/{a}.key;
  proxy_ssl_trusted_certificate {certs}/ca.pem; proxy_ssl_verify on; proxy_ssl_name {b}; proxy_ssl_server_name on;
  proxy_pass {tunnel};
}} }}
"""
_FAR = """
stream {{
  map $ssl_client_s_dn $app {{ CN={a} {target}; default ''; }}
  server {{
    listen {tunnel} ssl backlog=4096;
    ssl_protocols TLSv1.3; ssl_conf_command Ciphersuites {cipher}; ssl_ecdh_curve X25519:P-256;
    ssl_certificate {certs}/{b}.pem; ssl_certificate_key {certs}/{b}.key;
    ssl_client_certificate {certs}/ca.pem; ssl_verify_client on;
    proxy_pass $app;
  }}
}}
"""


class Nginx(ProxyPair):
    """A TLS connection for each connection."""

    name = "nginx"
    package = "nginx libnginx-mod-stream (apt)"

    def program(self) -> str | None:
        return which("nginx") if _MODULE.exists() else None

    def version(self) -> str:
        return first_line([self.program() or "nginx", "-v"]).rpartition("/")[2]

    def near(self, side: Side) -> list[str]:
        return self._run(side, _NEAR)

    def far(self, side: Side) -> list[str]:
        return self._run(side, _FAR)

    def _run(self, side: Side, part: str) -> list[str]:
        d = side.node.directory
        text = (_COMMON + part).format(
            module=_MODULE,
            workers=side.workers,
            cipher=CIPHER,
            d=d,
            listen=LISTEN,
            tunnel=side.tunnel,
            target=side.target,
            certs=side.certificates,
            a=NAME_A,
            b=NAME_B,
        )
        return [self.program() or "nginx", "-c", str(side.file("nginx.conf", text)), "-e", f"{d}/nginx.err"]
