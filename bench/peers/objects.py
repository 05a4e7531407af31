"""What is applied to the mesh that is measured, as people write it: YAML."""

RULES = 10
NAMESPACE = "bench"


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
