"""Which sources the settings want."""

from collections.abc import Iterator
from pathlib import Path

from agent.discovery.files import Files
from agent.discovery.found import Source
from agent.discovery.units import Units
from agent.settings import DiscoverySettings


def sources(settings: DiscoverySettings, node: str) -> Iterator[Source]:
    """Those to be run on the node."""
    if settings.files:
        yield Files(Path(settings.files), node)
    if settings.systemd:
        yield Units(node)
