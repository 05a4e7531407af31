"""What an operator orders at the admin socket, beyond asking: capture on, off or on trial, drain, leave."""

from collections.abc import Callable

import msgspec

from agent.answers import Done, TrialRequest
from agent.node.activation import Activation
from agent.node.exempt import Exemptions
from agent.node.state import Membership


class Orders:
    """`end(seconds)` ends the agent, giving connections so long (None: as long as is set); `left` is told that the node
    is a member no more."""

    def __init__(
        self,
        membership: Membership,
        activation: Activation,
        exemptions: Exemptions,
        drain: float,
        end: Callable[[float | None], None],
        left: Callable[[], None],
    ) -> None:
        self._membership, self._activation, self._exemptions = membership, activation, exemptions
        self._drain, self._end, self._left = drain, end, left

    async def on(self) -> Done:
        """Capture, for good."""
        await self._activation.switch(off=False)
        return Done(f"capture is on: {len(self._activation.captured)} workloads are captured")

    async def off(self) -> Done:
        """Capture nothing."""
        await self._activation.switch(off=True)
        return Done("capture is off and stays off, also after a restart; switch it on with `culvert capture on`")

    async def apply(self, body: bytes) -> Done:
        """On, for good or for a trial."""
        wanted = msgspec.json.decode(body, type=TrialRequest)
        if wanted.login:
            self._exemptions.came_in(*wanted.login)
        if not self._activation.off:
            await self._activation.once()
            left = self._activation.switched.left
            return Done(f"capture is being tried already, for {left:.0f} s more" if left else "capture is on already")
        if not wanted.seconds:
            return await self.on()
        await self._activation.attempt(wanted.seconds)
        return Done(
            f"capture is on for {wanted.seconds:g} s: {len(self._activation.captured)} workloads are captured. If all "
            "is well, say `culvert capture confirm`; otherwise do nothing, and it goes by itself"
        )

    async def confirm(self) -> Done:
        """The trial went well."""
        if self._activation.off:
            return Done("there is nothing to confirm: capture is off; try again with `culvert capture apply`")
        if self._activation.switched.until is None:
            return Done("there is nothing to confirm: capture is on")
        return await self.on()

    async def leave(self) -> Done:
        """Be a member no more, and end."""
        await self._activation.leave()
        self._left()
        self._end(0)
        node, domain = self._membership.node, self._membership.trust_domain
        return Done(
            f"{node} has left {domain}: nothing is captured any more, keys and certificates are deleted. The centre "
            f"still lists it: culvert delete node {node}"
        )

    async def drain(self) -> Done:
        """End when the connections have."""
        self._end(None)
        return Done(f"the agent ends once its connections have, within {self._drain:g} s; rules stay")
