"""The policies that bear on one workload, compiled for judging. Pure.

`compile_policies` picks, once for each workload and change, the policies in whose scope it is; `Compiled.judge` then
looks at the rules that can match the caller: those that name identities exactly are found by the caller's identity, and
only the others are tried one by one. So policies of other workloads cost nothing, nor do policies for other callers.

The order is Istio's: any DENY that matches denies; without an ALLOW in scope all is allowed; any ALLOW that matches
allows; otherwise denied. Where the caller has no identity, a `not` form of principals or namespaces matches in a DENY
and does not match in an ALLOW: either way the absent identity is denied, never let through by not being named.
"""

import ipaddress
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from agent.snapshot import Snapshot
from ca.identity import WorkloadIdentity
from ca.resources.mesh import Mode
from ca.resources.metadata import Selector
from ca.resources.policy import (
    Action,
    AuthorizationPolicy,
    Operation,
    PeerAuthentication,
    PeerAuthenticationSpec,
    Policy,
    Rule,
    Source,
)
from ca.resources.workload import Workload


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a connection when it is judged. `identity` is None for a caller that proved nothing."""

    identity: WorkloadIdentity | None
    source: str
    destination: str
    port: int


@dataclass(frozen=True, slots=True)
class Decision:
    """`reason` names what decided, as `policy namespace/name rule N`; empty when nothing stood against it.

    `would_deny` names the first dry-run policy that would have decided otherwise.
    """

    allowed: bool
    reason: str = ""
    would_deny: str = ""


Test = Callable[[Facts], bool]


@dataclass(frozen=True, slots=True)
class _Compiled:
    policy: str
    number: int
    test: Test

    def __str__(self) -> str:
        return f"policy {self.policy} rule {self.number}"


class _Rules:
    """Rules of one action: `exact` by principal, `others` to be tried in order."""

    __slots__ = ("exact", "others", "policies")

    def __init__(self) -> None:
        self.exact: dict[str, list[_Compiled]] = {}
        self.others: list[_Compiled] = []
        self.policies: list[str] = []

    def add(self, policy: AuthorizationPolicy) -> None:
        self.policies.append(policy.title)
        for number, rule in enumerate(policy.spec.rules, 1):
            compiled = _Compiled(policy.title, number, _rule(rule, policy.spec.action))
            names = _exact_principals(rule)
            if names is None:
                self.others.append(compiled)
            else:
                for name in names:
                    self.exact.setdefault(name, []).append(compiled)

    def first(self, facts: Facts) -> _Compiled | None:
        """A rule that matches."""
        if facts.identity is not None:
            for rule in self.exact.get(_bare(str(facts.identity)), ()):
                if rule.test(facts):
                    return rule
        for rule in self.others:
            if rule.test(facts):
                return rule
        return None


class Compiled:
    """All that bears on one workload."""

    __slots__ = ("_allow", "_deny", "_dry_allow", "_dry_deny", "_modes", "_strict", "_title")

    def __init__(self, title: str, strict: tuple[bool, str], modes: dict[int, tuple[bool, str]]) -> None:
        self._title = title
        self._strict, self._modes = strict, modes
        self._allow, self._deny, self._dry_allow, self._dry_deny = _Rules(), _Rules(), _Rules(), _Rules()

    def add(self, policy: AuthorizationPolicy) -> None:
        """Count a policy in."""
        deny, dry = policy.spec.action is Action.DENY, policy.spec.dry_run
        rules = (self._dry_deny if dry else self._deny) if deny else (self._dry_allow if dry else self._allow)
        rules.add(policy)

    def strict_at(self, port: int) -> str:
        """What says that nobody without an identity may connect to `port`; empty if nothing does."""
        strict, where = self._modes.get(port, self._strict)
        return where if strict else ""

    def judge(self, facts: Facts) -> Decision:
        """Allow or deny, and by which rule."""
        if facts.identity is None:
            strict, where = self._modes.get(facts.port, self._strict)
            if strict:
                return Decision(False, f"{where}: {self._title} accepts no connection without an identity")
        if rule := self._deny.first(facts):
            return Decision(False, f"denied by {rule}")
        would = self._would(facts)
        if not self._allow.policies:
            return Decision(True, "", would)
        if rule := self._allow.first(facts):
            return Decision(True, f"allowed by {rule}", would)
        names = ", ".join(self._allow.policies[:3]) + (" and others" if len(self._allow.policies) > 3 else "")
        return Decision(False, f"allowed by no rule of policy {names}")

    def _would(self, facts: Facts) -> str:
        if rule := self._dry_deny.first(facts):
            return f"{rule} would deny"
        if self._dry_allow.policies and not self._dry_allow.first(facts) and not self._allow.policies:
            return f"policy {self._dry_allow.policies[0]} would not allow"
        return ""


def scoped(snapshot: Snapshot, workload: Workload) -> list[AuthorizationPolicy]:
    """The authorization policies that bear on `workload`, in the order of their keys."""
    return [p for p in _near(snapshot, workload) if isinstance(p, AuthorizationPolicy) and _bears(p, workload)]


def _near(snapshot: Snapshot, workload: Workload) -> list[Policy]:
    """Every policy whose namespace is the workload's, or the whole mesh."""
    scopes = [snapshot.policies.get(ns, {}).values() for ns in ("", workload.metadata.namespace)]
    return sorted((p for scope in scopes for p in scope), key=lambda p: p.key)


def _bears(policy: Policy, workload: Workload) -> bool:
    return _selects(policy.spec.selector, workload.metadata.labels)


def compile_policies(snapshot: Snapshot, workload: Workload) -> Compiled:
    """What bears on `workload` now."""
    policies = [p for p in _near(snapshot, workload) if _bears(p, workload)]
    peers = [p for p in policies if isinstance(p, PeerAuthentication)]
    default = snapshot.mesh.spec.mode if snapshot.mesh else Mode.STRICT
    strict, modes = _strictness(peers, (default is Mode.STRICT, f"mode {default.value} of the mesh"))
    compiled = Compiled(workload.title, strict, modes)
    for policy in policies:
        if isinstance(policy, AuthorizationPolicy):
            compiled.add(policy)
    return compiled


def _selects(selector: Selector | None, labels: dict[str, str]) -> bool:
    return selector is None or selector.matches(labels)


def _strictness(
    peers: Iterable[PeerAuthentication], default: tuple[bool, str]
) -> tuple[tuple[bool, str], dict[int, tuple[bool, str]]]:
    """(strict?, what says so) for ports in general, and for those of their own: from the widest scope to the narrowest,
    each overruling the wider ones; of several with the same scope STRICT wins."""
    strict, modes = default, dict[int, tuple[bool, str]]()
    for scope in range(3):
        at_scope = [p for p in peers if _scope(p.metadata.namespace, p.spec) == scope]
        general = [(p.spec.mtls.mode is Mode.STRICT, p.title) for p in at_scope if p.spec.mtls]
        if general:
            wins = max(general)
            strict, modes = (wins[0], f"peer authentication {wins[1]}"), {}
        ports: dict[int, tuple[bool, str]] = {}
        for p in at_scope:
            for port, mtls in p.spec.port_level_mtls.items():
                said = (mtls.mode is Mode.STRICT, f"peer authentication {p.title} port {port}")
                ports[int(port)] = max(ports.get(int(port), said), said)
        modes |= ports
    return strict, modes


def _scope(namespace: str, spec: PeerAuthenticationSpec) -> int:
    if spec.selector is not None:
        return 2
    return 1 if namespace else 0


def _exact_principals(rule: Rule) -> list[str] | None:
    """The only identities for which the rule can match, if it can be said."""
    if rule.from_ is None:
        return None
    names: list[str] = []
    for clause in rule.from_:
        principals = clause.source.principals
        if not principals or any("*" in p for p in principals):
            return None
        names += [_bare(p) for p in principals]
    return sorted(set(names))


def _bare(principal: str) -> str:
    return principal.removeprefix("spiffe://")


def _rule(rule: Rule, action: Action) -> Test:
    sources = None if rule.from_ is None else [_source(c.source, action) for c in rule.from_]
    operations = None if rule.to is None else [_operation(c.operation) for c in rule.to]

    def test(facts: Facts) -> bool:
        return (sources is None or any(s(facts) for s in sources)) and (
            operations is None or any(o(facts) for o in operations)
        )

    return test


def _source(source: Source, action: Action) -> Test:
    tests: list[Test] = []
    absent = action is Action.DENY  # whether a `not` form matches a caller without an identity
    for positive, negative, fact in (
        (tuple(map(_bare, source.principals)), tuple(map(_bare, source.not_principals)), _principal),
        (source.namespaces, source.not_namespaces, _namespace),
    ):
        if positive:
            tests.append(_text(positive, fact, wanted=True, absent=False))
        if negative:
            tests.append(_text(negative, fact, wanted=False, absent=absent))
    tests += _networks(source.ip_blocks, source.not_ip_blocks, lambda f: f.source)
    return lambda facts: all(t(facts) for t in tests)


def _operation(operation: Operation) -> Test:
    tests = _networks(operation.ip_blocks, operation.not_ip_blocks, lambda f: f.destination)
    if operation.ports:
        ports = frozenset(operation.ports)
        tests.append(lambda f: f.port in ports)
    if operation.not_ports:
        others = frozenset(operation.not_ports)
        tests.append(lambda f: f.port not in others)
    return lambda facts: all(t(facts) for t in tests)


def _principal(facts: Facts) -> str:
    return _bare(str(facts.identity)) if facts.identity else ""


def _namespace(facts: Facts) -> str:
    return facts.identity.namespace if facts.identity else ""


def _text(patterns: tuple[str, ...], fact: Callable[[Facts], str], *, wanted: bool, absent: bool) -> Test:
    exact = frozenset(p for p in patterns if "*" not in p)
    prefixes = tuple(p[:-1] for p in patterns if p.endswith("*"))  # "*" itself: the empty prefix, so anything there
    suffixes = tuple(p[1:] for p in patterns if p.startswith("*") and p != "*")

    def test(facts: Facts) -> bool:
        value = fact(facts)
        if not value:
            return absent
        return (value in exact or value.startswith(prefixes) or value.endswith(suffixes)) is wanted

    return test


def _networks(blocks: tuple[str, ...], not_blocks: tuple[str, ...], fact: Callable[[Facts], str]) -> list[Test]:
    return [_within(texts, fact, wanted=w) for texts, w in ((blocks, True), (not_blocks, False)) if texts]


def _within(texts: tuple[str, ...], fact: Callable[[Facts], str], *, wanted: bool) -> Test:
    networks = [ipaddress.ip_network(t, strict=False) for t in texts]

    def test(facts: Facts) -> bool:
        address = ipaddress.ip_address(fact(facts))
        return any(address in n for n in networks) is wanted

    return test
