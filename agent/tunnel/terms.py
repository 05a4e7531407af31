"""On whose certificates a tunnel stands, and for how long. Values; the clock is passed in.

A tunnel is judged once at its handshake and may then live for days, so what the handshake saw is kept: a certificate
that is revoked later ends the tunnels it made (`objection`), one that ends takes no new connections into them, and
those that are open have `overtime` seconds more. Without that bound a stolen key would be good for as long as somebody
keeps a connection open; without overtime a database connection would break once a day.
"""

import enum
from dataclasses import dataclass

from cryptography.x509 import Certificate

from ca.identity import WorkloadIdentity
from ca.revoked import Revoked
from ca.tls import Machine
from ca.x509 import serial


class Standing(enum.Enum):
    """good: it takes new connections. ending: those it has go on. over: they had their time."""

    GOOD = "good"
    ENDING = "ending"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class Terms:
    """The identities at both ends, the serials (lower-case hex) of the certificates that proved them, and the unix time
    at which the first of those ends."""

    local: WorkloadIdentity
    peer: WorkloadIdentity
    local_serial: str
    peer_serial: str
    ends: float

    def objection(self, revoked: Revoked) -> str:
        """Why the tunnel must not be; empty if it may."""
        if not revoked.objects:
            return ""
        return revoked.objection(self.peer, self.peer_serial) or revoked.objection(self.local, self.local_serial)

    def standing(self, now: float, overtime: float) -> Standing:
        """What a tunnel may still do at `now`."""
        if now < self.ends:
            return Standing.GOOD
        return Standing.ENDING if now < self.ends + overtime else Standing.OVER


def agreed(machine: Machine, local: WorkloadIdentity, peer: WorkloadIdentity) -> Terms:
    """The terms of a finished handshake."""
    ours, theirs = machine.local_certificate, machine.peer_certificate
    if ours is None or theirs is None:
        raise ValueError("a tunnel has a certificate at either end")
    return Terms(local, peer, serial(ours), serial(theirs), min(_end(ours), _end(theirs)))


def _end(certificate: Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()
