from bench.peers.objects import RULES, mesh_objects, policy
from ca.resources.documents import read
from ca.resources.policy import AuthorizationPolicy
from ca.resources.workload import Workload


def test_the_last_of_ten_rules_is_for_our_client() -> None:
    (placed,) = read([("policy", policy("bench.example"))])
    assert isinstance(placed.resource, AuthorizationPolicy)
    rules = placed.resource.spec.rules
    assert len(rules) == RULES
    ours = "bench.example/ns/bench/sa/client"
    allowed = [r.from_[0].source.principals for r in rules if r.from_]
    assert [ours in principals for principals in allowed] == [False] * (RULES - 1) + [True]


def test_client_and_server_are_enrolled() -> None:
    client, server = (p.resource for p in read([("mesh", mesh_objects("a", "b", 1, 2, "10.90.0.2"))]))
    for workload, uid in ((client, 1), (server, 2)):
        assert isinstance(workload, Workload)
        assert workload.metadata.labels["mesh"] == "on"
        assert workload.spec.match
        assert workload.spec.match.uid == uid
