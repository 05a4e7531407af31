"""Desired state + change -> new state, what the store must write, and what changed since any revision. Pure.

A State is a value on persistent maps: a change costs what it changes, whatever the size of the mesh, and a watcher may
walk an old State while new ones are made. Three rules hold in every State reached through `change`:

    a Workload names a Node that exists
    what a node recognises (uid, cgroup, network namespace, address) belongs to one workload of that node
    an address and port belong to one workload, an address and tunnel port to one node

The second and third hold whether or not the workloads are enrolled: else a label, which anybody may set who may set
labels, could turn one workload's connections into another's. `claims` keeps them cheap to check.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import immutables
import msgspec

from ca.claims import Claim, claims
from ca.hints import did_you_mean
from ca.identity import Identity, NodeIdentity, WorkloadIdentity, parse
from ca.resources.kinds import Resource, decode, encode
from ca.resources.mesh import Mesh
from ca.resources.metadata import Key
from ca.resources.node import Node, NodeSpec
from ca.resources.revocation import Revocation
from ca.resources.workload import Match, Workload
from ca.revoked import NONE_REVOKED, Revoked
from ca.store import CHANGES_KEPT, Batch, Change, Contents, StoredResource

MESH = Key("Mesh", "", "mesh")


class RegistryError(Exception):
    """The change was refused and nothing changed; `faults` names every object that stands against it, and why."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = list(faults)


@dataclass(frozen=True, slots=True)
class State:
    """The mesh at `revision`. `log` holds what each revision after `compacted` changed, `logged` changes in all.

    `hosted` has the workloads of each node; the map of a node is replaced whenever one of its workloads changes.
    """

    incarnation: str
    revision: int = 0
    compacted: int = 0
    objects: immutables.Map[Key, Resource] = field(default_factory=immutables.Map)
    hosted: immutables.Map[str, immutables.Map[Key, None]] = field(default_factory=immutables.Map)
    claims: immutables.Map[Claim, Key] = field(default_factory=immutables.Map)
    revoked: Revoked = NONE_REVOKED
    log: immutables.Map[int, tuple[Change, ...]] = field(default_factory=immutables.Map)
    logged: int = 0

    @property
    def mesh(self) -> Mesh | None:
        """The Mesh; None before the first one was applied."""
        mesh = self.objects.get(MESH)
        return mesh if isinstance(mesh, Mesh) else None

    def node(self, name: str) -> Node | None:
        """The Node of that name."""
        node = self.objects.get(Key("Node", "", name))
        return node if isinstance(node, Node) else None

    def objection(self, identity: Identity, serial: str = "") -> str:
        """Why nobody may speak as `identity` any more, or with the certificate of that serial; empty if somebody
        may."""
        return self.revoked.objection(identity, serial)

    def member(self, node: str, serial: str = "") -> bool:
        """Whether the node is part of the mesh: it was not deleted, and neither it nor its certificate with this serial
        is revoked."""
        mesh = self.mesh
        return self.node(node) is not None and not (
            mesh and self.objection(NodeIdentity(mesh.spec.trust_domain, node), serial)
        )

    def on_node(self, name: str) -> list[Workload]:
        """The workloads that name the node, in the order of their keys."""
        found = (self.objects[k] for k in sorted(self.hosted.get(name, ())))
        return [w for w in found if isinstance(w, Workload)]

    def hosts(self, node: str, identity: WorkloadIdentity) -> bool:
        """Whether a workload on the node has that identity."""
        mesh = self.mesh
        if mesh is None or mesh.spec.trust_domain != identity.trust_domain:
            return False
        return any(w.identity(identity.trust_domain) == identity for w in self.on_node(node))

    def matches(self, node: str) -> dict[Key, Match]:
        """How the node recognises its workloads: its private part of the mesh."""
        return {w.key: w.spec.match for w in self.on_node(node) if w.spec.match is not None}

    def claimed(self, resource: Resource) -> Iterator[Claim]:
        """What the object claims, given where its node is."""
        address = ""
        if isinstance(resource, Workload):
            node = self.node(resource.spec.node)
            address = resource.spec.address or (node.spec.address if node else "")
        return claims(resource, address)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a change came to. `batch` is None if everything was so already: then `state` is the one before."""

    state: State
    put: tuple[Key, ...] = ()
    deleted: tuple[Key, ...] = ()
    batch: Batch | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What turns the mesh of an earlier revision into that of `revision`. With `reset` the earlier one is void and
    `put` is everything."""

    revision: int
    put: Iterable[Resource]
    delete: Sequence[Key] = ()
    reset: bool = False


def restore(incarnation: str, contents: Contents) -> State:
    """The State that a store holds. msgspec.ValidationError if a record is none of ours."""
    log: dict[int, tuple[Change, ...]] = {}
    for change in contents.changes:
        log[change.revision] = (*log.get(change.revision, ()), change)
    empty = State(
        incarnation, contents.revision, contents.compacted, log=immutables.Map(log), logged=len(contents.changes)
    )
    return _index(empty, {r.key: decode(r.body) for r in contents.resources}, (), {}, [])


def change(state: State, put: Iterable[Resource] = (), delete: Iterable[Key] = ()) -> Outcome:
    """Put and delete objects, all or nothing; an object in both is put. RegistryError lists what stands against it.

    A Node whose address is left out keeps the one it told at join, and likewise what it may register.
    """
    wanted = {r.key: _completed(state, r) for r in put}
    fresh = {key: r for key, r in wanted.items() if state.objects.get(key) != r}
    gone = [k for k in dict.fromkeys(delete) if k not in wanted]
    faults = [f"{key}: there is none{_near(state, key)}" for key in gone if key not in state.objects]
    faults += _mesh_faults(state, fresh, gone)
    faults += _revocation_faults(state, fresh)
    if faults:
        raise RegistryError(faults)
    if not fresh and not gone:
        return Outcome(state)
    after = _index(state, fresh, gone, _moved(state, fresh, gone), faults)
    faults += _node_faults(state, after, fresh, gone)
    if faults:
        raise RegistryError(faults)
    revision = state.revision + 1
    changes = (*(Change(revision, k, deleted=False) for k in fresh), *(Change(revision, k, deleted=True) for k in gone))
    after = _logged(replace(after, revision=revision), changes)
    records = tuple(StoredResource(key, revision, encode(r)) for key, r in fresh.items())
    return Outcome(after, tuple(fresh), tuple(gone), Batch(revision=revision, put=records, delete=tuple(gone)))


def label(state: State, key: Key, labels: Mapping[str, str | None]) -> Outcome:
    """Set the labels that have a value and remove the others."""
    resource = state.objects.get(key)
    if resource is None:
        raise RegistryError([f"{key}: there is none{_near(state, key)}"])
    kept = {k: v for k, v in resource.metadata.labels.items() if k not in labels}
    try:
        new = msgspec.structs.replace(
            resource.metadata, labels={**kept, **{k: v for k, v in labels.items() if v is not None}}
        )
    except ValueError as e:
        raise RegistryError([f"{key}: {e}"]) from e
    return change(state, [msgspec.structs.replace(resource, metadata=new)])


def since(state: State, revision: int, incarnation: str) -> Changes:
    """What came after `revision` of that incarnation; everything when that is not known any more (or never was)."""
    if incarnation != state.incarnation or not state.compacted <= revision <= state.revision:
        return Changes(state.revision, state.objects.values(), reset=True)
    touched = {c.key for r in range(revision + 1, state.revision + 1) for c in state.log.get(r, ())}
    return Changes(
        state.revision,
        [state.objects[k] for k in sorted(touched) if k in state.objects],
        [k for k in sorted(touched) if k not in state.objects],
    )


def _completed(state: State, resource: Resource) -> Resource:
    known = state.objects.get(resource.key)
    if not isinstance(resource, Node) or not isinstance(known, Node):
        return resource
    spec = resource.spec
    address, discovery = spec.address or known.spec.address, spec.discovery or known.spec.discovery
    return msgspec.structs.replace(resource, spec=NodeSpec(address, spec.tunnel_port, discovery))


def _moved(state: State, fresh: Mapping[Key, Resource], gone: Sequence[Key]) -> dict[Key, Resource]:
    """The workloads that stay as they are, but whose address moves with their node."""
    moved: dict[Key, Resource] = {}
    for key, new in fresh.items():
        old = state.objects.get(key)
        if isinstance(new, Node) and isinstance(old, Node) and old.spec.address != new.spec.address:
            moved |= {w.key: w for w in state.on_node(new.metadata.name) if not w.spec.address}
    return {k: w for k, w in moved.items() if k not in fresh and k not in gone}


def _index(
    state: State, fresh: Mapping[Key, Resource], gone: Sequence[Key], moved: Mapping[Key, Resource], faults: list[str]
) -> State:
    """The state with `fresh` put and `gone` deleted, indexes in step; a claim that another holds becomes a fault."""
    leaving = {k: state.objects[k] for k in (*fresh, *gone, *moved) if k in state.objects}
    arriving = {**moved, **fresh}
    objects = state.objects.mutate()
    for key in gone:
        del objects[key]
    objects.update(fresh)
    after = replace(state, objects=objects.finish())
    claimed, hosted, revoked = state.claims.mutate(), state.hosted.mutate(), state.revoked
    for key, resource in leaving.items():
        for claim in state.claimed(resource):
            claimed.pop(claim, None)
        if isinstance(resource, Revocation):
            revoked = revoked.drop(key)
        if isinstance(resource, Workload):
            rest = hosted[resource.spec.node].delete(key)
            hosted[resource.spec.node] = rest
            if not rest:
                del hosted[resource.spec.node]
    for key in sorted(arriving):
        for claim in after.claimed(arriving[key]):
            if (holder := claimed.get(claim)) is not None:
                faults.append(f"{key}: {claim} is already that of {holder}; give one of them another")
            claimed[claim] = key
        resource = arriving[key]
        if isinstance(resource, Revocation):
            revoked = revoked.put(resource)
        if isinstance(resource, Workload):
            hosted[resource.spec.node] = hosted.get(resource.spec.node, immutables.Map()).set(key, None)
    return replace(after, claims=claimed.finish(), hosted=hosted.finish(), revoked=revoked)


def _mesh_faults(state: State, fresh: Mapping[Key, Resource], gone: Iterable[Key]) -> Iterator[str]:
    new, old = fresh.get(MESH), state.mesh
    if isinstance(new, Mesh) and old is not None and new.spec.trust_domain != old.spec.trust_domain:
        yield (
            f"{MESH}: spec.trustDomain: it is {old.spec.trust_domain} and cannot become {new.spec.trust_domain}: every "
            "identity carries it; start another mesh"
        )
    if MESH in gone:
        yield f"{MESH}: cannot be deleted; to end the mesh, stop its centre"


def _revocation_faults(state: State, fresh: Mapping[Key, Resource]) -> Iterator[str]:
    domain = state.mesh.spec.trust_domain if state.mesh else ""
    for key, new in fresh.items():
        if isinstance(new, Revocation) and new.spec.identity and domain:
            if (foreign := parse(new.spec.identity).trust_domain) != domain:
                yield f"{key}: spec.identity: {foreign} is another trust domain than ours, {domain}"


def _node_faults(state: State, after: State, fresh: Mapping[Key, Resource], gone: Iterable[Key]) -> Iterator[str]:
    for key, new in fresh.items():
        if isinstance(new, Workload) and after.node(new.spec.node) is None:
            names = [k.name for k in after.objects if k.kind == "Node"]
            hint = did_you_mean(new.spec.node, names) or "; make a token for it, or apply it"
            yield f"{key}: spec.node: there is no node {new.spec.node}{hint}"
    for key in gone:
        if key.kind == "Node" and (left := after.on_node(key.name)):
            names = [w.title for w in left]
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            yield f"{key}: still has workloads: {', '.join(names[:5])}{more}; delete or move them first"


def _logged(state: State, changes: tuple[Change, ...]) -> State:
    """The state with `changes` in its log, and the oldest revisions forgotten beyond CHANGES_KEPT."""
    log, compacted = state.log.set(state.revision, changes), state.compacted
    logged = state.logged + len(changes)
    while logged > CHANGES_KEPT:
        compacted += 1
        logged -= len(log.get(compacted, ()))
        log = log.delete(compacted) if compacted in log else log
    return replace(state, log=log, logged=logged, compacted=compacted)


def _near(state: State, key: Key) -> str:
    known = {str(k): k for k in state.objects if k.kind == key.kind}
    return did_you_mean(str(key), known) if known else ""
