"""What is known of the certificates of a mesh: which end when, and whom that should worry."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import trio

from ca.contract import CertificateCount, CertificateStatus, TrustStatus
from ca.inventory import lifetimes
from ca.lifetimes import Lifetime, Overview, Standing, Thresholds, overview
from ca.registry import State
from ca.store import Store


class Trust:
    """Looks at the record of a store, in a thread. `state` is the latest of the registry, `now` the centre's clock."""

    def __init__(
        self, store: Store, state: Callable[[], State], now: Callable[[], datetime], thresholds: Thresholds
    ) -> None:
        self._store = store
        self._state = state
        self._now = now
        self._thresholds = thresholds
        self._overview = Overview(now())
        self.failing: dict[str, str] = {}
        """What the centre fails to do for its certificates, by what that is, as long as it fails; in words as an alarm
        has them."""

    @property
    def alarms(self) -> list[str]:
        """What an operator must know: what fails, and what the last `look_over` found."""
        return [*self.failing.values(), *(f.text for f in self._overview.findings)]

    @property
    def overview(self) -> Overview:
        """What the last `look_over` found."""
        return self._overview

    async def look_over(self) -> Overview:
        """Look at every certificate that signs or is wanted. StoreError."""
        now = self._now()
        found = await self._lifetimes()
        self._overview = await trio.to_thread.run_sync(overview, found, now, self._thresholds)
        return self._overview

    async def status(self, limit: int, workload_life: timedelta) -> TrustStatus:
        """Every kind of certificate, and those that end first, `limit` of them. StoreError."""
        now, thresholds, revocations = self._now(), self._thresholds, len(self._state().revoked.objects)
        failing = [*self.failing.values()]
        found = await self._lifetimes()

        def answer() -> TrustStatus:
            it = overview(found, now, thresholds)
            held = sorted(found, key=lambda i: i.ends)
            # However many others there are, what signs is always among them.
            held = held[:limit] + [i for i in held[limit:] if i.what in ("root", "issuing")]
            return TrustStatus(
                [
                    CertificateStatus(i.what, i.title, i.ends.timestamp(), i.standing(now, thresholds).value)
                    for i in held
                ],
                [CertificateCount(what, *(it.counts[what, s] for s in Standing)) for what in it.first],
                [*failing, *(f.text for f in it.findings)],
                revocations,
                now.timestamp(),
                workload_life.total_seconds(),
            )

        return await trio.to_thread.run_sync(answer)

    async def _lifetimes(self) -> Sequence[Lifetime]:
        state, store = self._state(), self._store
        return await trio.to_thread.run_sync(lambda: tuple(lifetimes(state, store.issuers(), store.holders())))
