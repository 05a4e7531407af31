"""What all tables of a node share, whatever it captures."""

import os

from agent.settings import AgentSettings
from redirect.desired import Desired

INBOUND_PORT = 15006


def base(settings: AgentSettings, worker_uid: int) -> Desired:
    """A table without captures."""
    return Desired(
        agent_uids=tuple(sorted({os.geteuid(), worker_uid})),
        never=Desired().never | {settings.tunnel_port},
        inbound_port=INBOUND_PORT,
        marks=settings.packet_marks,
    )
