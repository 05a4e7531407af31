"""The table in the kernel: changed without a gap, read back, counted, watched, removed exactly. Blocking.

Where the kernel knows how (Linux 6.9), the agent's table has an owner, so that nobody else changes or flushes it, and
persists: it outlives the agent, may then be deleted by anybody, and is taken over by the next agent. Elsewhere a watch
restores it, within milliseconds unless the mesh is large.
"""

import contextlib
import errno
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from redirect import routing
from redirect.compare import compare
from redirect.counts import Counters, counted
from redirect.decode import decode_base, decode_group, decode_rule
from redirect.desired import Desired, Marks
from redirect.encode import (
    INET,
    OWNED,
    PERSISTENT,
    Message,
    add_elements,
    own_table,
    remove_elements,
    remove_table,
    replace_table,
    take_table,
)
from redirect.explain import explain, lacks_cgroups
from redirect.frames import attribute, attributes
from redirect.hold import hold_sets
from redirect.names import MESH, PRESENCE, TABLE
from redirect.namespace import in_namespace
from redirect.netlink import NETFILTER, ROUTE, CaptureError, Interrupted, Netlink, Refused
from redirect.plan import plan
from redirect.presence import presence
from redirect.route_watch import RouteWatch
from redirect.ruleset import Chain, Count, Group, Rule, Ruleset, Set, VerdictMap, endpoint_sets
from redirect.shelter import shelter_sets
from redirect.transition import transition
from redirect.unknown import parent_sets
from redirect.watch import ROOM, SUBSYSTEM, Watch

_GET_TABLE, _GET_CHAIN, _GET_RULE, _GET_SET, _GET_ELEMENTS, _GET_GENERATION = 1, 4, 7, 10, 13, 16
_TRIES = 20
"""Of a listing that changes overtake."""
_T = TypeVar("_T")


class Kernel:
    """The table of one network namespace: the caller's own, or `netns` (a name or path). Who opens it closes it.

    Calls may come from any thread and wait for each other. Failures are CaptureError, with the kernel's own words, the
    likely cause and the next step; an OSError or NamespaceError from opening means that there is no access at all.
    """

    def __init__(self, netns: str | None = None, own: bool = False) -> None:
        """With `own` the table is nobody else's to change for as long as this is open, where the kernel can."""
        self._netns = netns
        self._flags = OWNED | PERSISTENT if own else 0
        self._lock = threading.Lock()
        # What the last `apply` wanted and made; None when we cannot know.
        self._applied: Desired | None = None
        self._known: Ruleset | None = None
        self._generation: int | None = None
        self._present = False
        self._lacks = ""
        self._nft = self._inside(lambda: Netlink(NETFILTER))
        try:
            self._routes = self._inside(lambda: Netlink(ROUTE))
        except BaseException:
            self._nft.close()
            raise

    def close(self) -> None:
        """Leaves everything in the kernel as it is."""
        self._nft.close()
        self._routes.close()

    def apply(self, desired: Desired, afresh: bool = False) -> str:
        """Make the kernel do what is desired, with no moment in which less is captured than before and after. Returns
        what of it this kernel cannot do: where it cannot tell cgroups apart, all the rest is done.

        What is refused leaves things as they were. A change of mesh addresses, or of cgroups and stations that are
        nobody's, touches those elements only.
        `afresh` looks at what the kernel holds instead of trusting memory: for tables that somebody else has changed.
        Counters go on from where they were, but for the milliseconds in which their own workload's rules change.
        """
        with self._lock:
            flags = self._flags
            try:
                self._put(self._able(desired), afresh)
            except Refused as refused:
                self._forget()
                if self._lacks or not lacks_cgroups(refused):
                    raise explain(refused) from refused
                self._lacks, self._flags = str(explain(refused)), flags
                try:
                    self._put(self._able(desired), afresh)
                except Refused as again:
                    self._forget()
                    raise explain(again) from again
            return self._lacks if self._able(desired).told_apart != desired.captures else ""

    def _put(self, desired: Desired, afresh: bool) -> None:
        if afresh or not self._change_elements(desired):
            if self._applied is None or self._applied.marks != desired.marks:
                routing.remove_others(self._routes, desired.marks)
            planned = plan(desired, time.clock_gettime(time.CLOCK_BOOTTIME))
            self._move(planned, afresh)
            self._applied, self._known = desired, planned
            routing.install(self._routes, desired.marks)

    def _able(self, desired: Desired) -> Desired:
        """What of it this kernel can do, as far as it has refused something."""
        return replace(desired, cgroups=False) if self._lacks else desired

    @property
    def owned(self) -> bool:
        """Whether the table that was applied is nobody else's to change."""
        return bool(self._flags)

    def appear(self, marks: Marks) -> None:
        """Say that the agent is there, as long as this socket is open or until `vanish`: see `presence`. CaptureError
        on kernels whose tables cannot have an owner (before 5.12), or without labels of connections."""
        with self._lock:
            if not self._present:
                try:
                    self._commit(own_table(presence(marks)))
                except Refused as refused:
                    hint = "it needs Linux 5.12 with CONFIG_NF_CONNTRACK_LABELS"
                    raise CaptureError(
                        refused.code, f"the kernel cannot tie rules to the agent's life: {refused.refusal}; {hint}"
                    ) from refused
                self._present = True

    def vanish(self) -> None:
        """Take `appear` back: what fails open passes from now on."""
        with self._lock:
            if self._present:
                self._present = False
                try:
                    self._commit(remove_table(PRESENCE))
                except Refused as refused:
                    raise explain(refused) from refused

    def differences(self, desired: Desired) -> list[str]:
        """What in the kernel is not as desired, in words; empty when all is well."""
        with self._lock:
            try:
                return [
                    *compare(plan(self._able(desired), time.clock_gettime(time.CLOCK_BOOTTIME)), self._held()),
                    *routing.missing(self._routes, desired.marks),
                ]
            except Refused as refused:
                raise explain(refused) from refused

    def held(self) -> Ruleset | None:
        """The table as the kernel has it; None when there is none."""
        with self._lock:
            try:
                return self._held()
            except Refused as refused:
                raise explain(refused) from refused

    def remove(self, marks: Marks | None = None) -> None:
        """No table, rule or route of ours afterwards, whether there were any or not. Nobody else's are touched."""
        with self._lock:
            try:
                self._forget()
                self._commit(remove_table(TABLE))
                routing.remove(self._routes, marks or Marks())
            except Refused as refused:
                raise explain(refused) from refused

    def counters(self) -> Counters:
        """What there is to count; nothing without a table."""
        with self._lock:
            try:
                totals = self._settled(self._totals)
            except Refused as refused:
                raise explain(refused) from refused
        return counted(totals)

    def watch(self, room: int = ROOM) -> Watch:
        """News of what others do to the table, from now on; `room` bytes of them are kept until read.

        Restore it with `apply(desired, afresh=True)`.
        """
        return self._inside(lambda: Watch(TABLE, self._nft.port, self._unchanged, room))

    def watch_routes(self) -> RouteWatch:
        """News of our routing that others take away. Restore it with `reroute`."""
        return self._inside(lambda: RouteWatch(self._routes.port))

    def reroute(self, marks: Marks) -> list[str]:
        """Put back what is missing of our routing; what that was, in words."""
        with self._lock:
            try:
                lost = list(routing.missing(self._routes, marks))
                routing.install(self._routes, marks)
            except Refused as refused:
                raise explain(refused) from refused
        return lost

    def _inside(self, function: Callable[[], _T]) -> _T:
        return in_namespace(self._netns, function) if self._netns else function()

    def _commit(self, messages: list[Message]) -> None:
        before = self._current_generation()
        self._nft.transact(messages)
        after = self._current_generation()
        # Unless exactly one change was made meanwhile, some of it was not ours.
        self._generation = after if after == before + 1 else None

    def _unchanged(self) -> bool:
        with self._lock, contextlib.suppress(Refused, OSError):
            return self._generation is not None and self._current_generation() == self._generation
        return False

    def _current_generation(self) -> int:
        answer = self._nft.ask(SUBSYSTEM << 8 | _GET_GENERATION, _header(), "a look at the tables")
        return int.from_bytes(dict(attributes((answer or b"")[4:])).get(1, b""), "big")

    def _forget(self) -> None:
        self._applied = self._known = None

    def _move(self, planned: Ruleset, afresh: bool) -> None:
        """From what is there to what is planned: by memory, else by what the kernel lists, else all anew."""
        if self._known is not None and not afresh:
            try:
                return self._change(self._known, planned)
            except Refused:
                # Somebody else changed the table.
                pass
        held = self._held()
        if held is not None:
            self._take_over()
        try:
            return self._change(held, planned)
        except Refused as refused:
            if held is None and self._flags:
                self._flags = 0  # an older kernel; or something else is wrong, which shows again
                return self._move(planned, afresh)
            if held is None or refused.code == errno.EPERM:
                raise
            # What strangers put in may hang together in ways that we do not know.
            try:
                return self._commit(replace_table(self._with_counts(planned), self._flags))
            except Refused:
                self._go_back()
                raise

    def _take_over(self) -> None:
        """The table that an agent before us left becomes ours. One of an older version, or on an older kernel, cannot:
        it stays as it is. Raises Refused while somebody else has it."""
        if self._flags:
            try:
                self._commit([take_table(TABLE, self._flags)])
            except Refused as refused:
                if refused.code == errno.EPERM:
                    raise

    def _go_back(self) -> None:
        """To the table before a change that was refused half-way, as well as we can."""
        if self._known is not None:
            with contextlib.suppress(Refused):
                self._change(self._held(), self._known)

    def _change(self, known: Ruleset | None, planned: Ruleset) -> None:
        for messages in transition(known, self._with_counts(planned), self._flags):
            self._commit(messages)

    def _change_elements(self, desired: Desired) -> bool:
        """Whether it was enough to change elements: mesh addresses, or cgroups and stations that are nobody's."""
        applied, known = self._applied, self._known
        if applied is None or known is None:
            return False
        if replace(desired, mesh=applied.mesh, parents=applied.parents, hold=applied.hold) != applied:
            return False
        old = {s.name: s for s in _element_sets(applied, than=desired)}
        new = {s.name: s for s in _element_sets(desired, than=applied)}
        if old.keys() != new.keys():
            return False
        gone = {name: old[name].elements - new[name].elements for name in new}
        came = {name: replace(new[name], elements=new[name].elements - old[name].elements) for name in new}
        messages = [m for group in came.values() for m in add_elements(TABLE, group)]
        messages += [
            m for name, elements in gone.items() for m in remove_elements(TABLE, name, new[name].key, elements)
        ]
        try:
            if messages:
                self._commit(messages)
        except Refused:
            # Somebody else changed the table; whatever is truly wrong shows when all of it is looked at.
            self._forget()
            return False
        sets = tuple(
            replace(s, elements=(s.elements - gone[s.name]) | came[s.name].elements) if s.name in came else s
            for s in known.sets
        )
        self._applied, self._known = desired, replace(known, sets=sets)
        return True

    def _with_counts(self, ruleset: Ruleset) -> Ruleset:
        totals = self._settled(self._totals)
        return replace(ruleset, chains=tuple(_continued(c, totals.get(c.name, {})) for c in ruleset.chains))

    def _totals(self) -> dict[str, dict[str, list[Count]]]:
        """What the counters stand at, by chain and comment."""
        totals: dict[str, dict[str, list[Count]]] = {}
        for chain, rule in self._rules():
            for statement in rule.statements:
                if isinstance(statement, Count):
                    totals.setdefault(chain, {}).setdefault(rule.comment, []).append(statement)
        return totals

    def _held(self) -> Ruleset | None:
        return self._settled(self._listing)

    def _settled(self, listing: Callable[[], _T]) -> _T:
        """A listing takes several requests: it counts only if nothing changed from the first to the last."""
        for _ in range(_TRIES):
            before = self._current_generation()
            try:
                found = listing()
            except Interrupted:
                continue
            except Refused as refused:
                # Something went away between two requests.
                if refused.code != errno.ENOENT or self._current_generation() == before:
                    raise
                continue
            if self._current_generation() == before:
                return found
        raise Refused.ours(errno.EBUSY, f"a listing of table {TABLE}: others keep changing tables")

    def _listing(self) -> Ruleset | None:
        if not any(row.get(1, b"").rstrip(b"\0") == TABLE.encode() for row in self._rows(_GET_TABLE)):
            return None
        groups = [self._group(row) for row in self._rows(_GET_SET, attribute(1, _text(TABLE)))]
        rules: dict[str, list[Rule]] = {}
        for chain, rule in self._rules():
            rules.setdefault(chain, []).append(rule)
        return Ruleset(
            TABLE,
            sets=tuple(g for g in groups if isinstance(g, Set)),
            maps=tuple(g for g in groups if isinstance(g, VerdictMap)),
            chains=tuple(
                Chain(name, tuple(rules.get(name, ())), decode_base(row))
                for row in self._rows(_GET_CHAIN)
                if row.get(1, b"").rstrip(b"\0") == TABLE.encode() and (name := row[3].rstrip(b"\0").decode())
            ),
        )

    def _group(self, row: dict[int, bytes]) -> Group:
        place = attribute(1, row[1]) + attribute(2, row[2])
        # Elements come in messages of many; attribute 3 has them.
        elements = [
            element for message in self._rows(_GET_ELEMENTS, place) for _, element in attributes(message.get(3, b""))
        ]
        return decode_group(row, elements)

    def _rules(self) -> list[tuple[str, Rule]]:
        rows = self._rows(_GET_RULE, attribute(1, _text(TABLE)))
        return [(row[2].rstrip(b"\0").decode(), decode_rule(row)) for row in rows]

    def _rows(self, kind: int, filtered: bytes = b"") -> list[dict[int, bytes]]:
        answers = self._nft.dump(SUBSYSTEM << 8 | kind, _header() + filtered, f"a listing of table {TABLE}")
        return [dict(attributes(payload[4:])) for payload in answers]


def _element_sets(of: Desired, than: Desired) -> tuple[Set, ...]:
    """The sets of `of` in which it may differ from `than`, with the addresses that both have left out."""
    mesh = frozenset() if of.mesh is than.mesh else of.mesh - than.mesh
    return (*endpoint_sets(MESH, mesh), *parent_sets(of.asked), *hold_sets(of.hold), *shelter_sets(of.hold))


def _header() -> bytes:
    return struct.pack("!BBH", INET, 0, 0)


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _continued(chain: Chain, totals: dict[str, list[Count]]) -> Chain:
    """The chain with its counters starting at what those of the same comment have counted so far, in order.

    Rules come and go with the settings: what is left over is added to the last, so that no total ever falls.
    """
    rest = {comment: list(counts) for comment, counts in totals.items()}
    rules = list(chain.rules)
    places: dict[str, list[int]] = {}
    for number, rule in enumerate(rules):
        if any(isinstance(s, Count) for s in rule.statements):
            places.setdefault(rule.comment, []).append(number)
    for comment, numbers in places.items():
        counts = rest.get(comment, [])
        for number in numbers:
            mine, counts = (counts, []) if number == numbers[-1] else (counts[:1], counts[1:])
            start = Count(sum(c.packets for c in mine), sum(c.bytes for c in mine))
            statements = tuple(start if isinstance(s, Count) else s for s in rules[number].statements)
            rules[number] = replace(rules[number], statements=statements)
    return replace(chain, rules=tuple(rules))
