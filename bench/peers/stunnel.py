"""stunnel: a thread for each connection. It has no setting for workers; with one worker each side keeps to one core."""

import os

from bench.peers.proxies import CIPHER, LISTEN, NAME_A, NAME_B, ProxyPair, Side, first_line, which

_COMMON = """
foreground = yes
pid =
debug = 3
syslog = no
sslVersionMin = TLSv1.3
ciphersuites = {cipher}
CAfile = {certs}/ca.pem
verifyChain = yes
[tunnel]
"""
_NEAR = """
client = yes
accept = 127.0.0.1:{listen}
connect = {tunnel}
cert = {certs}/{a}.pem
key = {certs}/{a}.key
sni = {b}
checkHost = {b}
"""
_FAR = """
accept = {tunnel}
connect = {target}
cert = {certs}/{b}.pem
key = {certs}/{b}.key
checkHost = {a}
"""


class Stunnel(ProxyPair):
    """A TLS connection for each connection."""

    name = "stunnel"
    package = "stunnel4 (apt)"

    def program(self) -> str | None:
        return which("stunnel4")

    def version(self) -> str:
        dpkg = first_line(["dpkg-query", "-W", "-f", "${Version}\n", "stunnel4"])
        return dpkg.rpartition(":")[2]

    def near(self, side: Side) -> list[str]:
        return self._run(side, _NEAR, core=0)

    def far(self, side: Side) -> list[str]:
        return self._run(side, _FAR, core=-1)

    def _run(self, side: Side, part: str, core: int) -> list[str]:
        text = (_COMMON + part).format(
            cipher=CIPHER,
            listen=LISTEN,
            tunnel=side.tunnel,
            target=side.target,
            certs=side.certificates,
            a=NAME_A,
            b=NAME_B,
        )
        pin = ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[core])] if side.workers == 1 else []
        return [*pin, self.program() or "stunnel4", str(side.file("stunnel.conf", text))]
