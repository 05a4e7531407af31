"""The agent: its parts put together, and its life from start to end.

Start: what is on disk is enough; the centre may be away. End: on SIGTERM workers drain and the process goes; the rules
stay, so that captured connections are refused rather than leaked until the next start.
"""

import os
import random
import signal
import socket
import time
from collections.abc import Iterator, Sequence

import structlog
import trio

from agent.checks import CheckAnswer, rights
from agent.checks.look import Node, capabilities, look
from agent.clock import CentreClock
from agent.discovery.discovery import Discovery
from agent.discovery.wanted import sources
from agent.forking import Forked
from agent.leaf import Leaf
from agent.node import notices, unmeshed
from agent.node.activation import Activation
from agent.node.admin import Admin, AdminError, admin_socket
from agent.node.base import INBOUND_PORT, base
from agent.node.capture import Capture, StartError
from agent.node.centre import Centre, Unanswered
from agent.node.exempt import Exemptions
from agent.node.files import StateError
from agent.node.issuance import Issuance
from agent.node.orders import Orders
from agent.node.seal import find as find_seal
from agent.node.starting import Starter
from agent.node.state import Membership, State
from agent.node.timekeeping import keep_time
from agent.node.topics import Topics
from agent.node.view import Change, Intake, MeshView
from agent.node.workers import Workers
from agent.settings import AccountError, AgentSettings, endpoint, worker_account
from agent.snapshot import Snapshot
from agent.telemetry.access_log import AccessLog
from agent.telemetry.ledger import Ledger
from agent.telemetry.sink import Sink
from ca.client import boot_time
from ca.notify import keep_watchdog, notify
from ca.pages import Page, open_listener, serve_pages
from ca.resources.workload import NEVER_CAPTURED

log: structlog.stdlib.BoundLogger = structlog.get_logger()

FIRST_VIEW = 10.0
"""Seconds that a node which knows nothing yet waits for its first view before it says it has started."""

FAREWELL = 2.0
"""Seconds beyond the drain until stragglers are killed."""


class AgentError(Exception):
    """The agent cannot run; the message says why and what to do."""


async def run_agent(settings: AgentSettings, version: str, forked: Sequence[Forked]) -> None:
    """Run the agent, at first with the workers `forked`, until it is told to stop. AgentError."""
    told: BaseExceptionGroup[Exception] | None = None
    try:
        # The socket comes first: it makes sure that no other agent works on the same files.
        with admin_socket(settings.admin_socket) as sock:
            await Supervisor(settings, version, sock, Starter(forked)).run()
    except* (StartError, StateError, AdminError, AccountError) as errors:
        told = errors  # raised in here, some versions of Python (3.11.2) put it into a group
    if told:
        raise AgentError("; ".join(str(e) for e in _single(told))) from told


class Supervisor:
    """One agent, answering at `admin`. Making it reads the disk; StartError, StateError or AccountError say why there
    can be none."""

    def __init__(self, settings: AgentSettings, version: str, admin: socket.socket, starter: Starter) -> None:
        self.settings = settings
        self._version = version
        account = worker_account(settings.worker_user)
        if lacking := rights.refusal(capabilities(), os.geteuid(), account[0]):
            raise StartError(lacking)
        self._admin_socket = admin
        self.state = State(settings.state_dir, find_seal(settings.seal, os.environ))
        if sealed := self.state.seal_all():
            log.info("keys-sealed", files=sealed)
        self.membership, node_leaf, roots = _joined(self.state)
        self._address = settings.centre or self.membership.centre
        saved = self.state.views.load(self.membership.node)
        view = saved or MeshView(Snapshot(self.membership.node))
        self.clock = CentreClock(time.time, boot_time)
        self._own_problems: tuple[str, ...] = ()
        self._sink = _open_sink(settings.access_log)
        self.ledger = Ledger(AccessLog(self._sink) if self._sink else None, time.monotonic)

        rng = random.Random()
        marks = settings.packet_marks
        self.workers = Workers(
            self.membership.node, account, marks, view, self.ledger.take, lambda: self.activation.poke(), starter
        )
        self.workers.overtime = float(settings.overtime)
        self.workers.busy_poll = settings.busy_poll / 1e6
        self.issuance = Issuance(
            self.state,
            self.membership,
            self._address,
            node_leaf,
            roots,
            self.clock,
            settings.max_skew,
            hold=self.workers.hold,
            trust=self.workers.trust,
            changed=lambda: self.activation.poke(),
            renewed=lambda: self.centre.hurry(),
            rng=rng,
        )
        self._revoked = view.snapshot.revoked
        left = self.state.ports().namespaces.values()
        self.capture = Capture(
            self.workers,
            marks,
            left,
            INBOUND_PORT,
            lost=lambda: self.activation.poke(),
            emptied=lambda: self.activation.emptied(),
            shares=settings.worker_count,
        )
        exemptions = Exemptions(self._address, settings.login_ports)
        self.activation = Activation(
            view,
            self.state,
            self.workers,
            self.capture,
            self.issuance.workloads,
            settings.port_range(),
            base(settings, account[0]),
            time.time,
            self._reported,
            exemptions,
            settings.discovery.hold,
        )
        self.centre = Centre(
            self.issuance.client,
            Intake(view),
            version,
            took=self._took,
            trusted=self.issuance.trusted,
            answer=self._answer,
            met=self._met,
            timed=self.clock.heard,
            rng=rng,
        )
        self.discovery = Discovery(
            self.membership.node,
            sources(
                settings.discovery, self.membership.node, settings.run_dir, self.activation.poke, self.activation.meet
            ),
            self.issuance.client,
            self._reported,
            never=NEVER_CAPTURED | {settings.tunnel_port, *settings.port_range()},
            linger=float(settings.discovery.linger),
        )
        self.discovery.look(view.snapshot)
        self.topics = Topics(
            self.membership,
            version,
            self._address,
            time.time(),
            self.activation,
            self.capture,
            self.workers,
            self.issuance.workloads,
            self.issuance.own,
            self.centre,
            self.discovery,
            self.ledger,
            lambda: self._sink.dropped if self._sink else 0,
            self.clock,
            settings.max_skew,
        )
        orders = Orders(
            self.membership, self.activation, exemptions, float(settings.drain), self.stop, lambda: self._leave()
        )
        self.admin = Admin(
            {**self.topics.all(), "check": self._check},
            {
                "capture/on": orders.on,
                "capture/confirm": orders.confirm,
                "pre-enrolment/cut": self.topics.cut,
                "capture/off": orders.off,
                "leave": orders.leave,
                "drain": orders.drain,
            },
            {"capture/apply": orders.apply},
        )
        self._stop, self._ended = trio.Event(), trio.Event()
        self._drain_seconds = float(settings.drain)
        self._leaving = False

    async def run(self) -> None:
        """Until told to stop."""
        for problem in self.state.problems:
            log.warning("state-damaged", problem=problem)
        try:
            async with trio.open_nursery() as nursery:
                await self._start(nursery)
                await self._stop.wait()
                notify("STOPPING=1")
                log.info("stopping", drain=self._drain_seconds)
                await self.capture.step_aside()
                await self.workers.drain(self._drain_seconds)
                with trio.move_on_after(self._drain_seconds + FAREWELL):
                    await self._ended.wait()
                nursery.cancel_scope.cancel()
        finally:
            self.capture.close()
            self.activation.close()
            if self._sink:
                self._sink.close()
            if self._leaving:
                self.state.forget_all()

    async def _start(self, nursery: trio.Nursery) -> None:
        pages: tuple[tuple[str, str, Page], ...] = (
            (self.settings.metrics, "/metrics", self.topics.metrics),
            (self.settings.readiness, "/readyz", self.topics.readiness),
        )
        for where, path, page in pages:
            if where:
                try:
                    listener = await open_listener(*endpoint(where))
                except OSError as error:
                    raise StartError(f"{error.strerror}; is another agent there? `ss -ltnp` shows who") from error
                nursery.start_soon(serve_pages, listener, {path: page, "/": page})
        await self.capture.start(nursery, self.settings.tunnel_port)
        nursery.start_soon(self._work)
        nursery.start_soon(self._signals)
        nursery.start_soon(self.admin.serve, self._admin_socket)
        nursery.start_soon(self.activation.run)
        nursery.start_soon(self.issuance.workloads.run)
        nursery.start_soon(self.issuance.own.run)
        nursery.start_soon(self.centre.run)
        nursery.start_soon(self.discovery.run)
        nursery.start_soon(self._keep_time)
        nursery.start_soon(notices.endings, self.topics, self._noticed)
        nursery.start_soon(unmeshed.summarise, self.capture.counters)
        nursery.start_soon(self._say_ready)
        nursery.start_soon(keep_watchdog)
        nursery.start_soon(notices.passed, self.activation.first, self.state, self.capture)
        log.info("started", node=self.membership.node, version=self._version, pid=os.getpid())

    def stop(self, drain: float | None = None) -> None:
        """End in good order; a second call ends the waiting for connections."""
        if self._stop.is_set():
            self._ended.set()
        if drain is not None:
            self._drain_seconds = drain
        self._stop.set()

    def _leave(self) -> None:
        self._leaving = True

    # ---- tasks

    async def _work(self) -> None:
        await self.workers.run(self.settings.worker_count)
        self._ended.set()

    async def _signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async for number in signals:
                if number == signal.SIGHUP:
                    if self._sink:
                        self._sink.reopen()
                else:
                    self.stop()

    async def _keep_time(self) -> None:
        await keep_time(
            self.clock,
            connected=lambda: self.centre.connected,
            measure=self.issuance.measure,
            woke=self._woke,
            certified=lambda: self.issuance.workloads.schedule.certified(time.time()),
            changed=self.activation.poke,
            bound=self.settings.max_skew,
        )

    async def _say_ready(self) -> None:
        with trio.move_on_after(FIRST_VIEW):
            await self.activation.first.wait()
        notify("READY=1")
        await notices.preconditions(self._check)

    async def _check(self) -> CheckAnswer:
        node = Node(
            self._version,
            self.membership.node,
            self.membership.trust_domain,
            self._address,
            self.centre.connected,
            self.centre.problem,
            self.issuance.leaves(),
            self.issuance.identity,
            len(self.activation.enrolment.locals),
            str(self.clock.skew() or ""),
            self.clock.objection(self.settings.max_skew),
        )
        return CheckAnswer(await trio.to_thread.run_sync(look, self.settings, node))

    # ---- the centre

    def _woke(self, slept: float) -> None:
        """The clock was set, or the machine slept: what was planned by the clock is planned anew."""
        self._met()
        if slept:
            self.centre.anew()
        else:
            self.centre.hurry()
        self.activation.poke()

    def _met(self) -> None:
        self.issuance.kick()
        self.discovery.registration.met()

    def _noticed(self, problems: tuple[str, ...]) -> None:
        self._own_problems = problems
        self._reported()

    def _reported(self) -> None:
        problems = (*self._own_problems, *self.activation.problems, *self.discovery.problems)
        self.centre.report(self.activation.active, problems)

    def _took(self, change: Change) -> None:
        revoked, before = change.view.snapshot.revoked, self._revoked
        self.activation.take(change)
        self.discovery.look(change.view.snapshot)
        if revoked is not before:
            self._revoked = revoked
            for uri in self.issuance.workloads.distrust(revoked):
                log.warning("certificate-revoked", identity=uri)

    async def _answer(self, topic: str, _body: bytes) -> bytes:
        try:
            return await self.admin.answer(topic)
        except KeyError as error:
            raise Unanswered(error.args[0]) from error


def _joined(state: State) -> tuple[Membership, Leaf, bytes]:
    membership, leaf, roots = state.membership(), state.node_leaf(), state.roots()
    if membership and leaf and roots:
        return membership, leaf, roots
    if state.problems:
        raise StartError("; ".join(state.problems) + "; join again: culvert agent join --force TOKEN")
    raise StartError(
        f"this machine has not joined a mesh ({state.directory} is empty); have a token made at the centre "
        "(`culvert central token create --node NAME`), then: culvert agent join TOKEN"
    )


def _open_sink(path: str) -> Sink | None:
    try:
        return Sink(path) if path else None
    except OSError as error:
        raise StartError(f"access log {path}: {error.strerror}; choose another with access_log") from error


def _single(group: BaseExceptionGroup[Exception]) -> Iterator[Exception]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _single(error)
        else:
            yield error
