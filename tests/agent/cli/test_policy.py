import json
from collections.abc import Iterator

import pytest

from tests.agent.cli.mesh import Commands, mesh

SHOP = """\
kind: Node
metadata: {name: n1}
spec: {address: 10.0.0.9}
---
kind: Workload
metadata: {name: web, namespace: shop, labels: {mesh: on}}
spec: {node: n1, serviceAccount: web, match: {uid: 1000}}
---
kind: Workload
metadata: {name: db, namespace: shop, labels: {mesh: on, app: db}}
spec: {node: n1, serviceAccount: db, ports: [5432], match: {uid: 1001}}
---
kind: AuthorizationPolicy
metadata: {name: db, namespace: shop}
spec:
  selector: {matchLabels: {app: db}}
  rules:
  - from: [{source: {principals: [shop.example/ns/shop/sa/web]}}]
    to: [{operation: {ports: [5432]}}]
---
kind: AuthorizationPolicy
metadata: {name: later, namespace: shop}
spec: {action: DENY, dryRun: true, rules: [{}]}
"""


@pytest.fixture(scope="module")
def culvert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    with mesh(tmp_path_factory.mktemp("mesh") / "centre") as commands:
        commands.ok("apply", "-f", "-", stdin=SHOP)
        yield commands


def test_check_names_the_rule_that_decides(culvert: Commands) -> None:
    assert culvert.ok("policy", "check", "shop/web", "shop/db:5432") == (
        "allowed: shop/web -> shop/db port 5432\n"
        "  allowed by policy shop/db rule 1\n"
        "  dry run: policy shop/later rule 1 would deny\n"
    )


@pytest.mark.parametrize("source", ["192.0.2.7", "spiffe://shop.example/ns/shop/sa/other"])
def test_check_ends_with_1_when_refused(culvert: Commands, source: str) -> None:
    done = culvert("policy", "check", source, "10.0.0.9:5432", "-o", "json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert (said["allowed"], said["destination"]) == (False, "shop/db")
    assert said["reason"] == "allowed by no rule of policy shop/db"


def test_who_is_not_there_is_said(culvert: Commands) -> None:
    assert "did you mean shop/web?" in culvert("policy", "check", "shop/wbe", "shop/db:5432").stderr
    assert "did you mean shop/db?" in culvert("policy", "check", "shop/web", "shop/bd:5432").stderr
    assert culvert("policy", "check", "shop/web", "shop/db").returncode == 2


def test_what_cannot_be_enforced_is_refused(culvert: Commands) -> None:
    rules = "[{to: [{operation: {paths: [/admin]}}]}]"
    policy = f"kind: AuthorizationPolicy\nmetadata: {{name: l7, namespace: shop}}\nspec: {{rules: {rules}}}\n"
    done = culvert("apply", "-f", "-", stdin=policy)
    assert done.returncode == 1
    assert "stdin:3: authorizationpolicy shop/l7: spec.rules[0].to[0].operation.paths" in done.stderr
    assert "cannot be enforced" in done.stderr
