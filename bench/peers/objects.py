"""What is applied to the mesh that is measured, as people write it: YAML."""

from collections.abc import Iterator

RULES = 10
NAMESPACE = "bench"
BATCH = 10_000
"""Workloads in one `culvert apply`."""


def mesh_objects(node_a: str, node_b: str, client_uid: int, server_uid: int, server: str) -> str:
    """The client on node A and the server on node B, both enrolled, each known by its uid."""
    return f"""
kind: Workload
metadata: {{namespace: {NAMESPACE}, name: client, labels: {{app: client, mesh: "on"}}}}
spec: {{node: {node_a}, serviceAccount: client, match: {{uid: {client_uid}}}}}
---
kind: Workload
metadata: {{namespace: {NAMESPACE}, name: server, labels: {{app: server, mesh: "on"}}}}
spec: {{node: {node_b}, serviceAccount: server, address: {server}, ports: [8080, 5201], match: {{uid: {server_uid}}}}}
"""


def policy(trust_domain: str) -> str:
    """Ten rules for the server. Nine allow others; the judge comes to the one for our client last."""
    others = [f"{trust_domain}/ns/{NAMESPACE}/sa/other-{number}" for number in range(1, RULES)]
    rules = "".join(
        f"""
  - from: [{{source: {{principals: ["{principal}"]}}}}]
    to: [{{operation: {{ports: [8080, 5201]}}}}]"""
        for principal in (*others, f"{trust_domain}/ns/{NAMESPACE}/sa/client")
    )
    return f"""
kind: AuthorizationPolicy
metadata: {{namespace: {NAMESPACE}, name: ten-rules}}
spec:
  selector: {{matchLabels: {{app: server}}}}
  action: ALLOW
  rules:{rules}
"""


def fillers(node: str, count: int) -> Iterator[str]:
    """Enrolled workloads with addresses of their own and four services each sharing an account, batch by batch."""
    for first in range(0, count, BATCH):
        yield "---\n".join(filler(node, number) for number in range(first, min(first + BATCH, count)))


def filler(node: str, number: int) -> str:
    """One of them; up to 2**24 have different addresses."""
    address = f"11.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    return f"""kind: Workload
metadata: {{namespace: fill-{number % 100}, name: w{number}, labels: {{app: a{number % 1000}, mesh: "on"}}}}
spec: {{node: {node}, serviceAccount: a{number % 1000}, address: {address}, ports: [80], match: {{address: {address}}}}}
"""
