"""What is revoked, for asking at every handshake and call. A value on persistent maps; an answer is two look-ups."""

from dataclasses import dataclass, field, replace

import immutables

from ca.identity import Identity
from ca.resources.metadata import Key
from ca.resources.revocation import Revocation

_Index = immutables.Map[str, frozenset[Key]]


@dataclass(frozen=True, slots=True)
class Revoked:
    """`objects` are the Revocations in force; `identities` (as URI) and `serials` (lower-case hex) lead to them."""

    objects: immutables.Map[Key, Revocation] = field(default_factory=immutables.Map)
    identities: _Index = field(default_factory=immutables.Map)
    serials: _Index = field(default_factory=immutables.Map)

    def put(self, revocation: Revocation) -> "Revoked":
        """With this one, instead of the one that had its name."""
        key, spec = revocation.key, revocation.spec
        if self.objects.get(key) == revocation:
            return self
        rest = self.drop(key)
        named = [spec.identity] if spec.identity else []
        return replace(
            rest,
            objects=rest.objects.set(key, revocation),
            identities=_with(rest.identities, named, key),
            serials=_with(rest.serials, spec.serials, key),
        )

    def drop(self, key: Key) -> "Revoked":
        """Without this one."""
        old = self.objects.get(key)
        if old is None:
            return self
        return replace(
            self,
            objects=self.objects.delete(key),
            identities=_without(self.identities, [old.spec.identity], key),
            serials=_without(self.serials, old.spec.serials, key),
        )

    def identity(self, identity: Identity | str) -> str:
        """Why nobody may speak as `identity`; empty if somebody may."""
        keys = self.identities.get(str(identity))
        return f"{identity} is revoked{self._why(keys)}" if keys else ""

    def serial(self, serial: str) -> str:
        """Why the certificate with this serial (hex; upper or lower case, zeros in front or not) is not good; empty if
        it is."""
        plain = serial.lower().lstrip("0")
        keys = self.serials.get(plain)
        return f"certificate {plain} is revoked{self._why(keys)}" if keys else ""

    def objection(self, identity: Identity | str, serial: str) -> str:
        """Why who proves `identity` with this certificate is refused; empty if he is not."""
        return self.identity(identity) or self.serial(serial)

    def _why(self, keys: frozenset[Key]) -> str:
        reason = self.objects[min(keys)].spec.reason
        return f" ({reason})" if reason else ""


NONE_REVOKED = Revoked()


def _with(index: _Index, values: list[str] | tuple[str, ...], key: Key) -> _Index:
    for value in values:
        index = index.set(value, index.get(value, frozenset()) | {key})
    return index


def _without(index: _Index, values: list[str] | tuple[str, ...], key: Key) -> _Index:
    for value in values:
        rest = index.get(value, frozenset()) - {key}
        if rest:
            index = index.set(value, rest)
        elif value in index:
            index = index.delete(value)
    return index
