"""haproxy in TCP mode: workers are its threads, session resumption is at its default, on."""

from bench.peers.proxies import CIPHER, LISTEN, NAME_A, NAME_B, ProxyPair, Side, first_line, which

_COMMON = """
global
  nbthread {workers}
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-server-options ssl-min-ver TLSv1.3
  ssl-default-bind-ciphersuites {cipher}
  ssl-default-server-ciphersuites {cipher}
defaults
  mode tcp
  timeout connect 5s
  timeout client 1h
  timeout server 1h
"""
_NEAR = """
frontend near
  bind 127.0.0.1:{listen}
  default_backend far
backend far
  server far {tunnel} ssl crt {certs}/{a}.both.pem ca-file {certs}/ca.pem verify required verifyhost {b} sni str({b})
"""
_FAR = """
frontend far
  bind {tunnel} ssl crt {certs}/{b}.both.pem ca-file {certs}/ca.pem verify required
  tcp-request content reject unless {{ ssl_c_s_dn(cn) -m str {a} }}
  default_backend app
backend app
  server app {target}
"""


class Haproxy(ProxyPair):
    """A TLS connection for each connection."""

    name = "haproxy"
    package = "haproxy (apt)"

    def program(self) -> str | None:
        return which("haproxy")

    def version(self) -> str:
        return first_line([self.program() or "haproxy", "-v"]).split()[2]

    def near(self, side: Side) -> list[str]:
        return self._run(side, _NEAR)

    def far(self, side: Side) -> list[str]:
        return self._run(side, _FAR)

    def _run(self, side: Side, part: str) -> list[str]:
        text = (_COMMON + part).format(
            workers=side.workers,
            cipher=CIPHER,
            listen=LISTEN,
            tunnel=side.tunnel,
            target=side.target,
            certs=side.certificates,
            a=NAME_A,
            b=NAME_B,
        )
        return [self.program() or "haproxy", "-db", "-f", str(side.file("haproxy.cfg", text))]
