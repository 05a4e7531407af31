"""Which sources the settings want."""

from collections.abc import Callable, Iterator
from pathlib import Path

from agent.discovery.files import Files
from agent.discovery.found import Source
from agent.discovery.tenants import Tenants
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
    # What is not wanted is not imported either: each brings a protocol or two.
    if settings.files:
        yield Files(Path(settings.files), node)
    if settings.systemd:
        from agent.discovery.units import Units

        yield Units(node)
    if settings.containers:
        from agent.discovery.containers import Containers

        yield Containers(node, settings.containers, run_dir / "netns", moved, met)
    if settings.users:
        from agent.discovery.users import Users

        yield Users(Path(settings.users), node)
