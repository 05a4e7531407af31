"""What the centre does for its certificates by itself: a new issuing one in time, ended revocations out, alarms told.

Looks at the wall clock once a minute instead of sleeping until a date: clocks are set, and machines suspended. Nothing
here is fatal: what fails is tried again, and is an alarm of `culvert ca status` as long as it fails.
"""

import structlog
import trio

from ca.authority import Refused
from ca.centre import Centre
from ca.lifetimes import Standing
from ca.registry import RegistryError
from ca.store import StoreError

LOOK_EVERY = 60.0
"""Seconds between looks."""

LOOK_OVER_EVERY = 300.0
"""Seconds between looks at all certificates: with a hundred thousand of them, one takes a second or so of one core."""

TELL_EVERY = 86400.0
"""Seconds after which an alarm that stands is told again."""

PAUSE, LAST_PAUSE = 60.0, 3600.0
"""Seconds after the first failure to renew, and at most: each try may leave an unused key behind."""

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Keeper:
    """Looks after one centre. `look` is one round; `run` makes them until cancelled."""

    def __init__(self, centre: Centre) -> None:
        self._centre = centre
        self._told: dict[str, float] = {}
        self._pause = 0.0
        self._failed = float("-inf")
        self._looked_over = float("-inf")

    async def run(self) -> None:
        """Round after round; the first was made by whoever starts this."""
        while True:
            await trio.sleep(self._wait())
            await self.look()

    async def look(self) -> None:
        """Do what is due now."""
        now = self._now()
        if abs(now - self._failed) >= self._pause:
            await self._renew(now)
        try:
            if gone := await self._centre.forget_revocations():
                log.info("revocations-forgotten", names=gone[:20], count=len(gone))
            if abs(now - self._looked_over) >= LOOK_OVER_EVERY:
                await self.look_over()
                self._centre.trust.failing.pop("look", None)
        except (StoreError, RegistryError) as e:
            self._fails("trust-not-kept", "look", f"ended revocations and certificates cannot be looked after: {e}")

    async def look_over(self) -> None:
        """Tell what is about to end although somebody needs it. StoreError."""
        overview = await self._centre.trust.look_over()
        self._looked_over = self._now()
        for finding in overview.findings:
            self._tell("expiry", finding.key, finding.text, error=finding.standing is Standing.ENDED)

    async def _renew(self, now: float) -> None:
        try:
            renewed = await self._centre.renew_issuer()
        except (StoreError, Refused) as e:
            self._failed, self._pause = now, min(2 * self._pause or PAUSE, LAST_PAUSE)
            ends = f"{self._centre.authority.issuer.cert.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
            about = f"the issuing certificate, which ends at {ends}, could not be renewed: {e}; it is tried again"
            self._fails("issuing-certificate-not-renewed", "renew", about)
            return
        self._centre.trust.failing.pop("renew", None)
        self._failed, self._pause = float("-inf"), 0.0
        if renewed:
            self._looked_over = float("-inf")  # an alarm that was about the old one is over
            until = self._centre.authority.issuer.cert.not_valid_after_utc
            log.info("issuing-certificate-renewed", until=until.isoformat())

    def _wait(self) -> float:
        """Seconds to the next look: issuing certificates of a short life are renewed on the second."""
        due = self._centre.authority.renews_issuer
        if due is None or self._pause:
            return LOOK_EVERY
        return min(LOOK_EVERY, max(1.0, due.timestamp() - self._now()))

    def _now(self) -> float:
        return self._centre.now().timestamp()

    def _fails(self, event: str, key: str, text: str) -> None:
        self._centre.trust.failing[key] = text
        self._tell(event, key, text, error=True)

    def _tell(self, event: str, key: str, text: str, *, error: bool = False) -> None:
        now = self._now()
        self._told = {k: at for k, at in self._told.items() if abs(now - at) < TELL_EVERY}
        if key in self._told:
            return
        self._told[key] = now
        if error:
            log.error(event, about=text)
        else:
            log.warning(event, about=text)
