"""Which sources the settings want."""

from collections.abc import Callable, Iterator
from pathlib import Path

from agent.discovery.containers import Containers
from agent.discovery.files import Files
from agent.discovery.found import Source
from agent.discovery.tenants import Tenants
from agent.discovery.units import Units
from agent.discovery.users import Users
from agent.settings import DiscoverySettings


def sources(
    settings: DiscoverySettings,
    node: str,
    run_dir: Path,
    moved: Callable[[], None],
    met: Callable[[Tenants], None],
) -> Iterator[Source]:
    """Those to be run on the node. `moved` is called when something that is recognised by the same is elsewhere, `met`
    with the containers that there are."""
    if settings.files:
        yield Files(Path(settings.files), node)
    if settings.systemd:
        yield Units(node)
    if settings.containers:
        yield Containers(node, settings.containers, run_dir / "netns", moved, met)
    if settings.users:
        yield Users(Path(settings.users), node)
