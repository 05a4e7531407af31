"""The policy evaluator against the documented semantics, and against itself with a fault put in."""

import inspect
import types
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import agent.policy
from agent.policy import Facts, compile_policies
from agent.snapshot import Snapshot
from ca.identity import WorkloadIdentity
from ca.resources.mesh import Mesh, MeshSpec, Mode
from ca.resources.metadata import Metadata, Selector
from ca.resources.node import Node, NodeSpec
from ca.resources.policy import (
    Action,
    AuthorizationPolicy,
    AuthorizationPolicySpec,
    From,
    MutualTls,
    Operation,
    PeerAuthentication,
    PeerAuthenticationSpec,
    Rule,
    Source,
    To,
)
from ca.resources.workload import Workload, WorkloadSpec
from tests.agent import reference_policy as reference

Policies = list[AuthorizationPolicy | PeerAuthentication]

NAMESPACES = st.sampled_from(["shop", "bank"])
SCOPES = st.sampled_from(["", "shop", "bank"])
PRINCIPALS = st.sampled_from(
    [
        "td/ns/shop/sa/web",
        "spiffe://td/ns/shop/sa/web",
        "td/ns/bank/sa/api",
        "td/ns/shop/*",
        "spiffe://td/ns/bank/*",
        "*/sa/web",
        "*",
        "td/ns/shop/sa/we",
    ]
)
NAMES = st.sampled_from(["shop", "bank", "sh*", "*nk", "*"])
BLOCKS = st.sampled_from(["10.0.0.1", "10.0.0.0/24", "10.0.0.128/25", "fd00::/8", "0.0.0.0/0", "::/0"])
PORTS = st.sampled_from([80, 443, 5432])


def some(each: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(each, max_size=2).map(tuple)


def made(kind: type, **fields: st.SearchStrategy[tuple[object, ...]]) -> st.SearchStrategy[object]:
    filled = st.fixed_dictionaries(fields).filter(lambda d: any(d.values()))
    return filled.map(lambda d: kind(**d))


SOURCES = made(
    Source,
    principals=some(PRINCIPALS),
    not_principals=some(PRINCIPALS),
    namespaces=some(NAMES),
    not_namespaces=some(NAMES),
    ip_blocks=some(BLOCKS),
    not_ip_blocks=some(BLOCKS),
)
OPERATIONS = made(
    Operation,
    ports=st.lists(PORTS, max_size=2).map(tuple),
    not_ports=st.lists(PORTS, max_size=2).map(tuple),
    ip_blocks=some(BLOCKS),
    not_ip_blocks=some(BLOCKS),
)
RULES = st.builds(
    Rule,
    from_=st.none() | st.lists(st.builds(From, SOURCES), min_size=1, max_size=2).map(tuple),
    to=st.none() | st.lists(st.builds(To, OPERATIONS), min_size=1, max_size=2).map(tuple),
)
SELECTORS = st.sampled_from([None, Selector({"app": "db"}), Selector({"app": "db", "tier": "x"}), Selector({"a": "b"})])
SPECS = st.one_of(
    st.builds(
        AuthorizationPolicySpec,
        action=st.just(Action.ALLOW),
        selector=SELECTORS,
        rules=st.lists(RULES, max_size=3).map(tuple),
        dry_run=st.booleans(),
    ),
    st.builds(
        AuthorizationPolicySpec,
        action=st.just(Action.DENY),
        selector=SELECTORS,
        rules=st.lists(RULES, min_size=1, max_size=2).map(tuple),
        dry_run=st.booleans(),
    ),
)
MODES = st.sampled_from(Mode).map(MutualTls)
PEER_SPECS = st.builds(
    PeerAuthenticationSpec,
    mtls=MODES,
    selector=SELECTORS,
    port_level_mtls=st.dictionaries(st.sampled_from(["80", "443"]), MODES, max_size=2),
)


@st.composite
def policies(draw: st.DrawFn) -> Policies:
    authorization = draw(st.lists(st.tuples(SCOPES, SPECS), max_size=4))
    peers = draw(st.lists(st.tuples(SCOPES, PEER_SPECS), max_size=3))
    return [
        *(AuthorizationPolicy(Metadata(f"p{i}", ns), s) for i, (ns, s) in enumerate(authorization)),
        *(PeerAuthentication(Metadata(f"q{i}", ns), s) for i, (ns, s) in enumerate(peers)),
    ]


CALLERS = (None, ("shop", "web"), ("bank", "api"), ("shop", "api"), ("bank", "web"))
ADDRESSES = ("10.0.0.1", "10.0.0.200", "192.0.2.1", "fd00::1")
CONNECTIONS = [
    (caller, source, destination, port)
    for (caller, port), (source, destination) in product(
        product(CALLERS, (80, 443, 5432)), zip(ADDRESSES, ADDRESSES[1:] + ADDRESSES[:1], strict=True)
    )
]
LABELS = st.sampled_from([{"mesh": "on"}, {"mesh": "on", "app": "db"}, {"mesh": "on", "app": "db", "tier": "x"}])


def view(given_policies: Policies, namespace: str, labels: dict[str, str], mode: Mode) -> tuple[Snapshot, Workload]:
    workload = Workload(Metadata("db", namespace, labels), WorkloadSpec("n1", "db", ports=(80,)))
    objects = [Mesh(Metadata("mesh"), MeshSpec("td", mode=mode)), Node(Metadata("n1"), NodeSpec("10.0.0.9")), workload]
    return Snapshot("n1").apply(1, [*objects, *given_policies], []), workload


def agree(
    module: types.ModuleType, given_policies: Policies, mode: Mode, namespace: str, labels: dict[str, str]
) -> bool:
    """Whether the evaluator and the reference come to the same decision for every one of CONNECTIONS."""
    snapshot, workload = view(given_policies, namespace, labels, mode)
    compiled = module.compile_policies(snapshot, workload)
    for caller, source, destination, port in CONNECTIONS:
        identity = WorkloadIdentity("td", *caller) if caller else None
        decision = compiled.judge(module.Facts(identity, source, destination, port))
        known = (str(identity).removeprefix("spiffe://"), caller[0]) if caller else None
        expected = reference.allows(given_policies, mode, namespace, labels, known, source, destination, port)
        if decision.allowed != expected:
            return False
    return True


CASES = st.tuples(policies(), st.sampled_from(Mode), NAMESPACES, LABELS)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(CASES)
def test_every_decision_is_the_documented_one(case: tuple[Any, ...]) -> None:
    assert agree(agent.policy, *case)


MUTANTS = [
    ("if rule := self._deny.first(facts):", "if rule := None:"),
    ("if not self._allow.policies:", "if not self._allow.policies or not self._allow.exact:"),
    ("absent = action is Action.DENY", "absent = action is Action.ALLOW"),
    ("tests.append(_text(negative, fact, wanted=False, absent=absent))", "pass"),
    ("if not value:\n            return absent", "if not value:\n            return True"),
    ("value.startswith(prefixes)", "value.endswith(prefixes)"),
    ("tests.append(lambda f: f.port not in others)", "pass"),
    ('return principal.removeprefix("spiffe://")', "return principal"),
    ("return 1 if namespace else 0", "return 0 if namespace else 1"),
    ("wins = max(general)", "wins = min(general)"),
    ("return any(address in n for n in networks) is wanted", "return True"),
    ("return selector is None or selector.matches(labels)", "return True"),
]


@pytest.mark.parametrize(("right", "wrong"), MUTANTS, ids=[str(i) for i in range(len(MUTANTS))])
def test_a_fault_in_the_evaluator_is_caught(right: str, wrong: str) -> None:
    source = inspect.getsource(agent.policy)
    assert source.count(right) == 1, "the mutant no longer applies: write it anew"
    mutant = types.ModuleType("agent.policy_mutant")
    exec(compile(source.replace(right, wrong), "mutant", "exec"), mutant.__dict__)
    caught = []

    @settings(
        max_examples=2000,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(CASES)
    def hunt(case: tuple[Any, ...]) -> None:
        if not agree(mutant, *case):
            caught.append(case)
            raise _Caught

    with pytest.raises(_Caught):
        hunt()
    assert caught


class _Caught(Exception):
    pass


WEB = WorkloadIdentity("td", "shop", "web")


def judge(
    given_policies: Policies, identity: WorkloadIdentity | None, mode: Mode = Mode.PERMISSIVE
) -> agent.policy.Decision:
    snapshot, workload = view(given_policies, "shop", {"mesh": "on"}, mode)
    return compile_policies(snapshot, workload).judge(Facts(identity, "10.0.0.1", "10.0.0.9", 80))


def allow(name: str, **source: tuple[str, ...]) -> AuthorizationPolicy:
    return AuthorizationPolicy(
        Metadata(name, "shop"), AuthorizationPolicySpec(rules=(Rule(from_=(From(Source(**source)),)),))
    )


def test_a_decision_names_policy_and_rule() -> None:
    assert judge([allow("web", principals=("td/ns/shop/sa/web",))], WEB).reason == "allowed by policy shop/web rule 1"
    denied = judge([allow("web", namespaces=("bank",))], WEB)
    assert (denied.allowed, denied.reason) == (False, "allowed by no rule of policy shop/web")
    strict = judge([], None, Mode.STRICT)
    assert strict.reason == "mode STRICT of the mesh: shop/db accepts no connection without an identity"


def test_a_dry_run_only_says_what_it_would_do() -> None:
    deny = AuthorizationPolicy(
        Metadata("later"), AuthorizationPolicySpec(action=Action.DENY, rules=(Rule(),), dry_run=True)
    )
    decision = judge([deny], WEB)
    assert (decision.allowed, decision.would_deny) == (True, "policy later rule 1 would deny")


def test_not_naming_somebody_does_not_let_nobody_in() -> None:
    assert not judge([allow("others", not_principals=("td/ns/bank/*",))], None).allowed
    assert judge([allow("others", not_principals=("td/ns/bank/*",))], WEB).allowed


def test_rules_for_other_callers_are_not_even_tried() -> None:
    tried = []
    many = [allow(f"p{i}", principals=(f"td/ns/shop/sa/s{i}",)) for i in range(2000)]
    snapshot, workload = view(
        [*many, allow("web", principals=("td/ns/shop/sa/web",))], "shop", {"mesh": "on"}, Mode.STRICT
    )
    compiled = compile_policies(snapshot, workload)
    for rules in compiled._allow.exact.values():
        rules[:] = [type(r)(r.policy, r.number, lambda f, r=r: tried.append(r) or r.test(f)) for r in rules]
    assert compiled.judge(Facts(WEB, "10.0.0.1", "10.0.0.9", 80)).allowed
    assert len(tried) == 1
