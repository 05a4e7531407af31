from dataclasses import replace

import pytest
from hypothesis import given

from redirect.desired import Capture, Desired, Recognise
from redirect.plan import plan
from redirect.ruleset import Code, Redirect, Ruleset, Verdict
from tests.redirect.desires import desired as desires

WEB = Capture("shop/web", Recognise(uid=1001), 15101)
DB = Capture("shop/db", Recognise(uid=1002), 15102)


@given(desires())
def test_everything_named_exists(wanted: Desired) -> None:
    """Sets and chains that rules and maps lead to; and each chain of a workload that the kernel can tell is led to."""
    ruleset = plan(wanted)
    chains = {chain.name for chain in ruleset.chains}
    groups = {group.name for group in (*ruleset.sets, *ruleset.maps)}
    assert len(chains) == len(ruleset.chains)
    assert len(groups) == len(ruleset.sets) + len(ruleset.maps)
    goals = {v.chain for m in ruleset.maps for _, v in m.elements}
    for chain in ruleset.chains:
        for rule in chain.rules:
            for statement in rule.statements:
                if isinstance(statement, Verdict) and statement.chain:
                    goals.add(statement.chain)
                assert getattr(statement, "set", getattr(statement, "map", "mesh4")) in groups
    assert goals <= chains
    assert {f"from/{c.workload}" for c in wanted.told_apart} <= goals


@given(desires())
def test_a_workload_goes_to_its_own_port_only(wanted: Desired) -> None:
    chains = {chain.name: chain for chain in plan(wanted).chains}
    for capture in wanted.captures:
        statements = [s for r in chains[f"from/{capture.workload}"].rules for s in r.statements]
        assert {s.port for s in statements if isinstance(s, Redirect)} == {capture.port}


def _set(ruleset: Ruleset, name: str) -> set[str]:
    (found,) = (s for s in ruleset.sets if s.name == name)
    assert found.key
    return {found.key.show(element) for element in found.elements}


def test_only_workloads_on_a_shared_address_share_ports() -> None:
    own = replace(WEB, serves=(("10.0.0.3", 80),))
    shared = replace(DB, serves=(("10.0.0.1", 5432),), shares_address=True)
    ruleset = plan(Desired((own, shared)))
    assert _set(ruleset, "local-ports") == {"5432"}
    assert _set(ruleset, "serves4") == {"10.0.0.3 . 80", "10.0.0.1 . 5432"}
    assert _set(ruleset, "kept-ports") == {"15006", "15101", "15102"}


def test_the_most_specific_comes_first() -> None:
    captures = (
        WEB,
        Capture("a/v6", Recognise(address="fd00::1"), 1),
        Capture("a/v4", Recognise(address="10.0.0.1"), 2),
        Capture("a/outer", Recognise(cgroup=(1, 5)), 3),
        Capture("a/inner", Recognise(cgroup=(12, 6)), 4),
        Capture("a/rest", Recognise(everything=True), 5),
    )
    ruleset = plan(Desired(captures))
    names = ["by-cgroup-12", "by-cgroup-1", "by-address4", "by-address6", "by-uid"]
    assert [m.name for m in ruleset.maps] == [*names, *(f"unmeshed-{name}" for name in names)]
    (out,) = (chain for chain in ruleset.chains if chain.name == "out")
    assert out.rules[-2].statements == (Verdict(Code.GOTO, "from/a/rest"),)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (replace(DB, recognise=WEB.recognise), "shop/web and shop/db are both recognised by 1001"),
        (replace(DB, port=WEB.port), "capture port 15101 is kept for several workloads"),
        (replace(DB, recognise=Recognise()), "shop/db has nothing to be recognised by"),
    ],
)
def test_contradictions_are_named(other: Capture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(Desired((WEB, other)))


def test_a_namespace_has_one_owner() -> None:
    whole = [replace(c, recognise=Recognise(everything=True)) for c in (WEB, DB)]
    with pytest.raises(ValueError, match="shop/web and shop/db both claim the whole network namespace"):
        plan(Desired(tuple(whole)))


def test_the_spelling_of_addresses_does_not_matter() -> None:
    one, other = (plan(Desired(mesh=frozenset({(text, 80)}))) for text in ("fd00::1", "FD00:0:0::0001"))
    assert one == other
