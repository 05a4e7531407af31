"""The latest State of the mesh, and the only way to a later one.

One change at a time: it is made of the latest State, the store has it on disk, and only then it is answered and shown
to the watchers. The store blocks, so its work goes to a thread; trio lets a thread finish even when the caller is
cancelled, so a change that reached the disk always reaches the State too.
"""

from collections.abc import Callable

import structlog
import trio

from ca import registry
from ca.contract import ApplyResponse
from ca.feed import Feed
from ca.registry import Outcome, RegistryError, State
from ca.store import Batch, ConflictError, Store

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Head:
    """What `store` has, followed by a feed with that `tick`."""

    def __init__(self, store: Store, tick: float) -> None:
        self._store = store
        self._changing = trio.Lock()
        self.state = _restored(store)
        self.feed = Feed(self.state, tick)

    async def change(
        self,
        make: Callable[[State], Outcome],
        *,
        commit: Callable[[Batch], None] | None = None,
        always: bool = False,
        dry_run: bool = False,
    ) -> ApplyResponse:
        """Make one change. `commit` writes the batch, the store's own by default; with `always` it is called even for
        an empty one. RegistryError, and whatever `make` and `commit` raise."""
        async with self._changing:
            try:
                outcome = make(self.state)
                changed = [str(k) for k in (*outcome.put, *outcome.deleted)]
                if dry_run or (outcome.batch is None and not always):
                    return ApplyResponse(self.state.revision, changed)
                await trio.to_thread.run_sync(commit or self._store.commit, outcome.batch or Batch())
            except ConflictError as e:
                # Another centre on the same store was first. What it wrote is the truth to start from.
                self._publish(await trio.to_thread.run_sync(_restored, self._store))
                raise RegistryError([f"{e}: somebody changed the mesh at the same moment; try again"]) from e
            self._publish(outcome.state)
        if changed:
            log.info("changed", revision=outcome.state.revision, objects=changed[:20], count=len(changed))
        return ApplyResponse(outcome.state.revision, changed)

    def _publish(self, state: State) -> None:
        self.state = state
        self.feed.publish(state)


def _restored(store: Store) -> State:
    return registry.restore(store.meta()["incarnation"], store.contents())
