"""A centre over a real store, and small objects to put in it."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trio

from ca.authority import Authority
from ca.centre import Centre
from ca.resources.mesh import Mesh, MeshSpec
from ca.resources.metadata import Metadata
from ca.store.sqlite import SqliteStore

DOMAIN = "shop.example"


def open_centre(directory: Path, **options: object) -> Centre:
    """The centre in `directory`, made if there is none. Its store is closed by `close_centre`."""
    store = SqliteStore.open(directory, create=True)
    if store.issuers():
        authority = Authority.open(store, store.keys)
    else:
        authority = Authority.create(store, store.keys, DOMAIN, datetime.now(UTC))
    return Centre(store, authority, advertise="127.0.0.1:1", **options)  # type: ignore[arg-type]


def close_centre(centre: Centre) -> None:
    """Let go of its store."""
    centre._store.close()


@pytest.fixture
def empty_centre(tmp_path: Path) -> Iterator[Centre]:
    made = open_centre(tmp_path / "centre")
    yield made
    close_centre(made)


@pytest.fixture
async def centre(empty_centre: Centre, nursery: trio.Nursery) -> Centre:
    """With a Mesh, and its feed running."""
    nursery.start_soon(empty_centre.feed.run)
    await empty_centre.apply([Mesh(metadata=Metadata("mesh"), spec=MeshSpec(DOMAIN))])
    return empty_centre
