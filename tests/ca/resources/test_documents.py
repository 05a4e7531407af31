import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ca.resources.documents import DocumentError, read, to_json, to_yaml
from ca.resources.kinds import Resource
from ca.resources.mesh import Egress, Mesh, MeshSpec, Mode
from ca.resources.metadata import Metadata, Selector
from ca.resources.node import Node, NodeSpec
from ca.resources.workload import Match, Workload, WorkloadSpec

SHOP = """\
# The shop.
kind: Mesh
metadata: {name: mesh}
spec:
  trustDomain: shop.example
  enrolment: {matchLabels: {mesh: on}}
  mode: STRICT
---
---
kind: Workload
apiVersion: culvert/v1
metadata:
  name: web
  namespace: shop
  labels:
    mesh: on
    version: "1"
    since: 2026-01-01
spec:
  node: web-1
  serviceAccount: web
  ports: [8080, 8443]
  match:
    uid: 1000
"""


def _read(text: str, file: str = "shop.yaml") -> list[Resource]:
    return [p.resource for p in read([(file, text)])]


def test_a_file_becomes_objects() -> None:
    assert _read(SHOP) == [
        Mesh(
            metadata=Metadata("mesh"),
            spec=MeshSpec("shop.example", enrolment=Selector({"mesh": "on"}), mode=Mode.STRICT),
        ),
        Workload(
            metadata=Metadata("web", "shop", {"mesh": "on", "version": "1", "since": "2026-01-01"}),
            spec=WorkloadSpec(node="web-1", service_account="web", ports=(8080, 8443), match=Match(uid=1000)),
        ),
    ]


def test_an_object_knows_where_it_stands() -> None:
    assert [(p.file, p.line) for p in read([("a.yaml", SHOP)])] == [("a.yaml", 2), ("a.yaml", 10)]


BAD = """\
kind: Mesh
metadata: {name: mesh}
spec:
  trustDomain: Shop_Example
  mode: strict
  egres: bypass
  enrolment: {matchLabels: {mesh: true}}
---
kind: Workload
apiVersion: culvert/v2
metadata:
  name: web
  labels: [mesh]
spec:
  node: web-1
  serviceaccount: web
  ports:
    - 8080
    - 70000
    - "8443"
  match: {uid: -1}
---
kind: Workload
metadata: {name: api, namespace: shop}
spec:
  node: web-1
  serviceAccount: api
  ports: [22]
  address: 10.0.0
  match:
    uid: 1
    cgroup: system.slice/api.service
  node: web-2
---
kind: Workloda
metadata: {name: db, namespace: shop}
---
- kind: Node
---
metadata: {name: n}
---
kind: Workload
metadata: {name: db}
spec:
---
kind: Workload
metadata: {name: db}
spec: {node: web-1, serviceAccount: 5, address: }
---
kind: Workload
metadata: {name: db}
spec: {node: web-1, serviceAccount: db, ports: [22, 80]}
---
kind: Node
metadata: {name: web-1}
---
kind: Node
metadata: {name: web-1}
"""

BAD_FAULTS = """\
bad.yaml:4: mesh mesh: spec.trustDomain: trust domain 'Shop_Example' is not a name: use lower-case letters, \
digits, '-' and '.', as in shop.example
bad.yaml:5: mesh mesh: spec.mode: 'strict' is no choice; did you mean STRICT?
bad.yaml:6: mesh mesh: spec.egres: no such field; did you mean egress?
bad.yaml:7: mesh mesh: spec.enrolment.matchLabels.mesh: expected text, got true or false; write "true"
bad.yaml:10: workload web: apiVersion: 'culvert/v2' must be culvert/v1
bad.yaml:13: workload web: metadata.labels: expected a mapping, got a list
bad.yaml:15: workload web: spec.serviceAccount: is missing
bad.yaml:16: workload web: spec.serviceaccount: no such field; did you mean serviceAccount?
bad.yaml:19: workload web: spec.ports[1]: 70000 must be at most 65535
bad.yaml:20: workload web: spec.ports[2]: expected a number, got text; write 8443 without quotes
bad.yaml:21: workload web: spec.match.uid: -1 must be at least 0
bad.yaml:28: workload shop/api: spec.ports: port 22 is never captured (SSH and Culvert's own ports stay \
reachable): leave it out
bad.yaml:29: workload shop/api: spec.address: '10.0.0' does not appear to be an IPv4 or IPv6 address
bad.yaml:31: workload shop/api: spec.match: match needs exactly one of uid, cgroup, netns, address; it has uid, cgroup
bad.yaml:33: workload shop/api: spec.node: stands a second time; the first is at line 26
bad.yaml:35: workloda shop/db: kind: 'Workloda' is no kind; did you mean Workload?
bad.yaml:38: node: metadata: is missing
bad.yaml:40: kind: is missing; known: AuthorizationPolicy, Mesh, Node, PeerAuthentication, Revocation, Workload
bad.yaml:44: workload db: spec: expected a mapping, got nothing
bad.yaml:48: workload db: spec.serviceAccount: expected text, got a number; write "5"
bad.yaml:48: workload db: spec.address: expected text, got nothing; give it a value
bad.yaml:52: workload db: spec.ports: port 22 is never captured (SSH and Culvert's own ports stay reachable): \
leave it out
bad.yaml:57: node web-1: stands a second time; the first is at bad.yaml:54
"""


def test_every_fault_is_listed_with_what_would_be_right() -> None:
    with pytest.raises(DocumentError) as refused:
        _read(BAD, "bad.yaml")
    assert str(refused.value) + "\n" == BAD_FAULTS


def test_duplicates_across_files_name_both_places() -> None:
    node = "kind: Node\nmetadata: {name: web-1}\n"
    with pytest.raises(DocumentError) as refused:
        read([("a.yaml", node), ("b.yaml", "# again\n" + node)])
    assert str(refused.value) == "b.yaml:2: node web-1: stands a second time; the first is at a.yaml:1"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "f:1: holds no object"),
        ("# nothing\n---\n", "f:1: holds no object"),
        ("kind: Node\nmetadata: {name: [}\n", "f:2: is no YAML: while parsing a flow node"),
        ("kind: Node\n\tmetadata: x\n", "f:2: is no YAML: while scanning for the next token"),
        ("a: &x [1]\nb: *x\n", "f:2: is no YAML: *x is an alias; write the value out"),
        ("kind: \x00\n", "f:1: is no YAML: unacceptable character"),
        ("[" * 5000, "f:1: is no YAML: maximum recursion depth"),
        ("kind: Node\nmetadata: {name: !!python/name:os.system x}\n", "f:2: node x: metadata.name: expected text, got"),
        ("kind: Node\nmetadata: {name: n}\n? [a]\n: b\n", "f:3: node n: a key is a word, not a list"),
        (
            "kind: Node\nmetadata: {name: n}\nspec: {tunnelPort: " + "9" * 5000 + "}",
            "f:3: node n: spec.tunnelPort: expected a number, got",
        ),
    ],
)
def test_what_is_no_document(text: str, fault: str) -> None:
    with pytest.raises(DocumentError) as refused:
        _read(text, "f")
    assert str(refused.value).startswith(fault)


names = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,8}[a-z0-9])?", fullmatch=True)
tricky = st.sampled_from(["on", "no", "true", "0o17", "0x1F", "1e3", "1", "1.5", "null", "y", "2026-01-01", "1_000"])
values = st.one_of(tricky, st.text(string.ascii_letters + string.digits, max_size=8))
labels = st.dictionaries(st.sampled_from(["app", "mesh", "team/app", "on", "1"]), values, max_size=4)
matches = st.one_of(
    st.none(),
    st.builds(Match, uid=st.integers(0, 2**32 - 2)),
    st.builds(Match, cgroup=st.sampled_from(["system.slice/web.service", "/a/b c", "a: #b"])),
    st.builds(Match, netns=st.sampled_from(["blue", "/run/netns/on", "12"])),
)
workloads = st.builds(
    Workload,
    metadata=st.builds(Metadata, name=names, namespace=names, labels=labels),
    spec=st.builds(
        WorkloadSpec,
        node=names,
        service_account=names,
        address=st.sampled_from(["", "10.0.0.1", "fd00::1"]),
        ports=st.lists(st.integers(16000, 65535), unique=True, max_size=4).map(tuple),
        match=matches,
    ),
)
nodes = st.builds(
    Node,
    metadata=st.builds(Metadata, name=names, labels=labels),
    spec=st.builds(NodeSpec, address=st.sampled_from(["", "10.0.0.1"]), tunnel_port=st.integers(1, 65535)),
)
meshes = st.builds(
    Mesh,
    metadata=st.just(Metadata("mesh")),
    spec=st.builds(
        MeshSpec,
        trust_domain=st.just("shop.example"),
        enrolment=st.builds(Selector, labels),
        mode=st.sampled_from(Mode),
        egress=st.sampled_from(Egress),
        certificate_life=st.sampled_from([None, "1h", "90d", "3600"]),
    ),
)


@given(st.lists(st.one_of(workloads, nodes, meshes), min_size=1, unique_by=lambda r: r.key))
def test_what_is_printed_reads_back_equal(resources: list[Resource]) -> None:
    assert _read(to_yaml(resources)) == resources
    assert _read(to_json(resources)) == resources


@given(st.text(max_size=200))
def test_arbitrary_text_is_read_or_refused(text: str) -> None:
    try:
        read([("f", text)])
    except DocumentError as e:
        refused = e.faults
    else:
        refused = []
    assert all(f.file == "f" and f.line >= 1 and f.cause for f in refused)
