"""What the agent says about itself: the answers behind the admin socket, the centre's questions, and the metrics."""

import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
import trio

from agent.answers import (
    CaptureAnswer,
    CaptureRow,
    CertificateRow,
    CertificatesAnswer,
    ConnectionsAnswer,
    DiscoveredAnswer,
    EarlierAnswer,
    HeldRow,
    PlanAnswer,
    Rules,
    StatusAnswer,
    TunnelsAnswer,
    UnnamedRow,
    WorkloadRow,
    WorkloadsAnswer,
)
from agent.clock import CentreClock
from agent.discovery.discovery import Discovery
from agent.leaf import Leaf
from agent.node.activation import Activation
from agent.node.capture import Capture
from agent.node.centre import Centre
from agent.node.cutting import listed
from agent.node.enrolment import HOST, NAMESPACED_PORT, Local
from agent.node.expiry import Alarm, alarms, standing
from agent.node.namespace import held_table
from agent.node.renewal import Renewal
from agent.node.state import Membership
from agent.node.workers import Workers
from agent.telemetry.ledger import Ledger
from agent.telemetry.metrics import Facts, exposition
from ca.resources.workload import Match
from redirect.counts import Counts
from redirect.desired import Desired
from redirect.difference import as_text, in_words
from redirect.plan import plan
from redirect.render import render


@dataclass(frozen=True, slots=True)
class Topics:
    """Looks at the parts of an agent; changes none."""

    membership: Membership
    version: str
    address: str
    started: float
    activation: Activation
    capture: Capture
    workers: Workers
    renewal: Renewal
    own: Renewal
    centre: Centre
    discovery: Discovery
    ledger: Ledger
    log_dropped: Callable[[], int]
    clock: CentreClock
    max_skew: float

    def all(self) -> Mapping[str, Callable[[], Awaitable[msgspec.Struct]]]:
        """By the names that people and the centre ask by."""
        return {
            "status": self.status,
            "workloads": self.workloads,
            "discovered": self.discovered,
            "certificates": self.certificates,
            "connections": self.connections,
            "tunnels": self.tunnels,
            "capture": self.captures,
            "plan": self.plan,
            "pre-enrolment": self.pre_enrolment,
        }

    def not_ready(self) -> str:
        """Why the node does not do its work; empty when it does."""
        if not self.workers.ready:
            return "no worker is ready"
        if self.activation.off:
            return "capture is switched off (`culvert capture on`)"
        if not self.activation.active:
            return "no view of the mesh is active yet"
        return next((text for texts in self.capture.problems.values() for text in texts), "")

    async def status(self) -> StatusAnswer:
        """How the agent is."""
        connections, tunnels, _ = await self.workers.tables()
        not_ready, skew = self.not_ready(), self.clock.skew()
        return StatusAnswer(
            node=self.membership.node,
            trust_domain=self.membership.trust_domain,
            version=self.version,
            centre=self.address,
            connected=self.centre.connected,
            centre_problem=self.centre.problem,
            revision=self.activation.view.snapshot.revision,
            active=self.activation.active,
            ready=not not_ready,
            not_ready=not_ready,
            capture=not self.activation.off,
            workloads=len(self.activation.enrolment.locals),
            workers=self.workers.ready,
            worker_restarts=self.workers.restarts,
            connections=len(connections),
            tunnels=len(tunnels),
            started=self.started,
            time=time.time(),
            memory=_memory(),
            clock_ahead=skew.ahead if skew else None,
            clock_uncertainty=skew.uncertainty if skew else 0.0,
            problems=[*self.own_problems(), *self.activation.problems, *self.discovery.problems],
        )

    def own_problems(self) -> Iterator[str]:
        """What stands against the node's clock, and its certificates where they are late."""
        objection = self.clock.objection(self.max_skew)
        if objection:
            yield objection
        alarms = self.alarms()
        yield from (alarm.text for alarm in alarms)
        told = {alarm.identity for alarm in alarms}
        for uri, reason in self.own.schedule.reasons().items():
            if reason != objection and uri not in told:
                yield f"the certificate of {uri} is not renewed: {reason}"

    def alarms(self) -> list[Alarm]:
        """The certificates that should have been renewed by now, or have ended."""
        schedules = (self.own.schedule, self.renewal.schedule)
        reasons = {uri: why for schedule in schedules for uri, why in schedule.reasons().items()}
        return alarms((leaf for s in schedules for leaf in s.leaves().values()), reasons, time.time())

    async def workloads(self) -> WorkloadsAnswer:
        """Who is registered here, who is enrolled, who is captured."""
        snapshot, matches = self.activation.view.snapshot, self.activation.view.matches
        certificates = {row.identity: row.status for row in self._certificates(time.time())}
        rows = []
        for workload in sorted(snapshot.workloads.values(), key=lambda w: w.key):
            if workload.spec.node != snapshot.node or snapshot.mesh is None:
                continue
            identity = str(workload.identity(snapshot.mesh.spec.trust_domain))
            match = matches.get(workload.key)
            address = snapshot.address(workload)
            rows.append(
                WorkloadRow(
                    workload.title,
                    identity,
                    recognised(match) if match else "",
                    [_endpoint(address, port) for port in workload.spec.ports] if address else [],
                    snapshot.enrolled(workload),
                    workload.title in self.activation.captured,
                    certificates.get(identity, ""),
                )
            )
        return WorkloadsAnswer(rows, list(self.activation.problems))

    async def discovered(self) -> DiscoveredAnswer:
        """What the node found itself, and what became of it."""
        return self.discovery.answer(lambda found: recognised(found.match))

    async def certificates(self) -> CertificatesAnswer:
        """What the node holds, its own certificate first."""
        now = time.time()
        return CertificatesAnswer(list(self._certificates(now)), now)

    async def connections(self) -> ConnectionsAnswer:
        """Live ones, as workers know them now, and the last that ended."""
        live, _, _ = await self.workers.tables()
        return ConnectionsAnswer(live, list(self.ledger.closed), self.ledger.dropped)

    async def tunnels(self) -> TunnelsAnswer:
        """Tunnels of all workers."""
        _, tunnels, _ = await self.workers.tables()
        return TunnelsAnswer(sorted(tunnels, key=lambda t: t.opened))

    async def captures(self) -> CaptureAnswer:
        """What is captured where, and how much it was."""
        counters = await self.capture.counters()
        rows = []
        for local in self.activation.enrolment.locals:
            if local.workload in self.activation.captured:
                count = counters.workloads.get(local.workload, Counts())
                rows.append(
                    CaptureRow(
                        local.workload,
                        recognised(local.match),
                        local.place,
                        self._port(local),
                        count.captured,
                        count.bypassed,
                        count.skipped,
                        "open" if local.open else "closed",
                        count.passed,
                        count.unmeshed,
                        count.dns,
                        count.blocked,
                    )
                )
        places = [(place, len(table.mesh)) for place, table in sorted(self.capture.applied().items())]
        problems = [text for texts in self.capture.problems.values() for text in texts]
        of = counters.held
        held = HeldRow(of.waited, of.refused, of.asked, of.sheltered, of.delayed)
        unnamed = UnnamedRow(counters.unnamed.units, counters.unnamed.containers)
        left = self.activation.switched.left
        return CaptureAnswer(not self.activation.off, rows, places, problems, left, held, unnamed)

    async def plan(self) -> PlanAnswer:
        """The rules that there should be with capture on, and how the kernel's differ."""
        desired = await self.activation.intended()
        tables = await trio.to_thread.run_sync(self._compared, desired)
        never = ", ".join(str(port) for port in sorted(self.activation.base.never))
        words = [f"ports {never}: SSH and Culvert's own", *self.activation.exempt.found.words]
        return PlanAnswer(tables, not self.activation.off, words)

    async def pre_enrolment(self) -> EarlierAnswer:
        """Connections of captured workloads that do not go through the agent."""
        return await self._earlier(cut=False)

    async def cut(self) -> EarlierAnswer:
        """End those."""
        return await self._earlier(cut=True)

    async def _earlier(self, cut: bool) -> EarlierAnswer:
        cgroups = {local.workload: local.cgroup for local in self.activation.enrolment.locals if local.cgroup}
        return await trio.to_thread.run_sync(listed, self.capture.applied(), cgroups, cut)

    def _compared(self, desired: Mapping[str, Desired]) -> list[Rules]:
        """Blocking: asks the kernel in each place."""
        rows = []
        for place in sorted({*desired, *self.capture.applied()}):
            table = desired.get(place)
            held = held_table(place)
            text = render(plan(table)) if table else ""
            rows.append(Rules(place, text, as_text(held, table), in_words(held, table)))
        return rows

    async def metrics(self) -> tuple[int, str, bytes]:
        """The page for Prometheus."""
        live, tunnels, gauges = await self.workers.tables()
        now = time.monotonic()
        self.ledger.counts.live(live, now)
        counters = await self.capture.counters()
        counts = counters.workloads
        leaves = {**self.own.schedule.leaves(), **self.renewal.schedule.leaves()}
        facts = Facts(
            expiry={uri: leaf.not_after for uri, leaf in leaves.items()},
            standing=Counter(standing(leaf, time.time()).value for leaf in leaves.values()),
            renewal_failures={"node": self.own.failures, "workload": self.renewal.failures},
            captured={w: c.captured for w, c in counts.items()},
            bypassed={w: c.bypassed for w, c in counts.items()},
            passed={w: c.passed for w, c in counts.items() if c.passed},
            unmeshed={w: {"allowed": c.unmeshed, "dns": c.dns, "blocked": c.blocked} for w, c in counts.items()},
            held={
                "waited": counters.held.waited,
                "refused": counters.held.refused,
                "sheltered": counters.held.sheltered,
                "delayed": counters.held.delayed,
            },
            asked=counters.held.asked,
            unnamed={"units": counters.unnamed.units, "containers": counters.unnamed.containers},
            over_budget=self.ledger.over_budget,
            gauges={**gauges, "connections": len(live), "tunnels": len(tunnels)},
            restored=self.capture.restored,
            not_captured=self.capture.not_captured,
            log_dropped=self.log_dropped(),
            records_dropped=self.ledger.dropped,
            worker_restarts=self.workers.restarts,
            workers=self.workers.ready,
            revision=self.activation.active,
            centre_connected=self.centre.connected,
            skew=self.clock.skew(),
        )
        return 200, "text/plain; version=0.0.4; charset=utf-8", exposition(self.ledger.counts, facts, now)

    async def readiness(self) -> tuple[int, str, bytes]:
        """200 when the node does its work; else 503 and why not."""
        reason = self.not_ready()
        return (503, "text/plain", f"{reason}\n".encode()) if reason else (200, "text/plain", b"ready\n")

    def _port(self, local: Local) -> int:
        return NAMESPACED_PORT if local.place != HOST else self.activation.ports.outbound.get(local.workload, 0)

    def _certificates(self, now: float) -> Iterator[CertificateRow]:
        for renewal in (self.own, self.renewal):
            leaves, reasons = renewal.schedule.leaves(), renewal.schedule.reasons()
            for uri in sorted(renewal.schedule.wanted()):
                yield _row(uri, leaves.get(uri), reasons.get(uri, ""), now)


def recognised(match: Match) -> str:
    """A match in words: `uid 1000`."""
    return next(f"{f} {v}" for f in match.__struct_fields__ if (v := getattr(match, f)) is not None)


def _row(uri: str, leaf: Leaf | None, reason: str, now: float) -> CertificateRow:
    if leaf is None:
        return CertificateRow(uri, "failing" if reason else "waiting", reason=reason)
    status = "valid" if leaf.valid(now) else "expired"
    return CertificateRow(uri, status, leaf.serial, leaf.not_after, leaf.not_before, reason)


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _memory() -> int:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
