"""What a node found on itself -> what of it is registered, and why not the rest. Pure.

A node is believed as far as its Node lets it (Discovery), and only about itself. What an operator applied stands, and
so does what another node registered: the newcomer is refused, and both ends can see it. One refused workload keeps no
other from being registered.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from ca.claims import Claim
from ca.contract import FoundRequest, NotRegistered
from ca.registry import Outcome, State, change
from ca.resources.kinds import Resource, decode
from ca.resources.metadata import Key
from ca.resources.node import Discovery, Node
from ca.resources.workload import Workload

MOST = 5000
"""Workloads that one node may register: a node that has gone mad must not fill the mesh."""


def adopt(state: State, node: str, request: FoundRequest) -> tuple[Outcome, list[NotRegistered]]:
    """The mesh after the request, and what was refused. RegistryError for what cannot be refused one by one."""
    refused: list[NotRegistered] = []
    wanted = _read(node, request.workloads, refused)
    # What this request is about; what an unnamed source had registered stands like anybody's.
    named = wanted.keys() | {Key(n.kind, n.namespace, n.name) for n in request.gone}
    mine = {
        w.key: w
        for w in state.on_node(node)
        if w.spec.found and (w.key in named or w.spec.found.source in request.sources)
    }
    # Who was registered first stays; the others come in the order in which the node has them.
    order = sorted(wanted, key=lambda key: key not in mine)
    taken: dict[Claim, Key] = {}
    accepted: dict[Key, Resource] = {}
    for key in order:
        new = _labelled(wanted[key], mine.get(key))
        if why := _objection(state, node, new, mine, taken) or ("" if len(accepted) < MOST else _too_many()):
            refused.append(NotRegistered(key.namespace, key.name, why))
            continue
        taken |= dict.fromkeys(state.claimed(new), key)
        accepted[key] = new
    return change(state, accepted.values(), [k for k in mine if k not in accepted]), refused


def outlawed(state: State, put: Iterable[Resource]) -> list[Key]:
    """What nodes registered that they may not any more once `put` is applied."""
    gone = []
    wanted = {r.key: r for r in put}
    for node in wanted.values():
        if isinstance(node, Node) and node.spec.discovery is not None:
            gone += [
                w.key
                for w in state.on_node(node.metadata.name)
                if w.spec.found and w.key not in wanted and _forbidden(node.spec.discovery, w)
            ]
    return gone


def orphans(state: State, delete: Iterable[Key]) -> list[Key]:
    """What nodes registered that are about to be deleted."""
    return [w.key for k in delete if k.kind == "Node" for w in state.on_node(k.name) if w.spec.found]


def _read(node: str, raws: Sequence[msgspec.Raw], refused: list[NotRegistered]) -> dict[Key, Workload]:
    found: dict[Key, Workload] = {}
    for number, raw in enumerate(raws, 1):
        try:
            workload = decode(raw)
        except msgspec.MsgspecError as error:
            refused.append(NotRegistered("", f"number {number}", f"cannot be read: {error}"))
            continue
        if not isinstance(workload, Workload) or workload.spec.found is None or workload.spec.node != node:
            why = f"is no workload that node {node} found on itself"
            refused.append(NotRegistered(workload.key.namespace, workload.key.name, why))
        else:
            found.setdefault(workload.key, workload)
    return found


def _objection(state: State, node: str, new: Workload, mine: Mapping[Key, Workload], taken: Mapping[Claim, Key]) -> str:
    standing = state.objects.get(new.key)
    if isinstance(standing, Workload) and standing.key not in mine:
        owner = f"node {standing.spec.node} registered it" if standing.spec.found else "an operator applied it"
        return f"there is a {new.key} already: {owner}; name one of them otherwise, or delete that one"
    mine_to_give = state.node(node)
    may = (mine_to_give.spec.discovery if mine_to_give else None) or Discovery()
    if why := _forbidden(may, new):
        return f"{why}; an operator may allow it in spec.discovery of node {node}"
    for claim in state.claimed(new):
        holder = taken.get(claim) or state.claims.get(claim)
        # What the node's others held is being claimed afresh, or goes.
        if holder is not None and holder != new.key and (claim in taken or holder not in mine):
            return f"{claim} is already that of {holder}; give one of them another"
    return ""


def _forbidden(may: Discovery, workload: Workload) -> str:
    spec = workload.spec
    own = spec.address or (spec.match.address if spec.match else None) or ""
    return may.objection(workload.metadata.namespace, spec.service_account, own)


def _labelled(new: Workload, old: Workload | None) -> Workload:
    """With the labels of its source, changed where an operator has changed them."""
    if old is None or old.spec.found is None:
        return new
    before, now = old.spec.found.labels, old.metadata.labels
    theirs = {k: v for k, v in now.items() if before.get(k) != v}
    labels = {k: v for k, v in new.metadata.labels.items() if k in now or k not in before} | theirs
    return msgspec.structs.replace(new, metadata=msgspec.structs.replace(new.metadata, labels=labels))


def _too_many() -> str:
    return f"a node may register {MOST} workloads, and this one has that many"
