"""What the demo reads back from the mesh, and how the reader can look around in it afterwards."""

import os
import shlex
import sys

from agent.lab import world
from agent.lab.demo_scene import Scene
from agent.lab.demo_voice import Voice
from agent.lab.mesh import TRUST_DOMAIN

Pair = tuple[str, str]
"""(source identity, destination identity)"""


async def agreed(scene: Scene) -> set[Pair]:
    """The pairs of identities that both nodes have on record for connections between them."""
    return await _pairs(scene, "web-1", "outbound") & await _pairs(scene, "db-1", "inbound")


async def _pairs(scene: Scene, node: str, direction: str) -> set[Pair]:
    return {
        (c["source"].get("identity", ""), c["destination"].get("identity", ""))
        for c in await scene.mesh.connections(scene.mesh.nodes[node])
        if c["direction"] == direction and c["security"] == "mtls" and c["verdict"] == "allowed"
    }


async def refusals(scene: Scene) -> int:
    """How many connections without identity db-1 has refused."""
    known = await scene.mesh.connections(scene.mesh.nodes["db-1"])
    return sum(c["verdict"] == "refused" and not c["source"].get("identity") for c in known)


def workload(identity: str) -> str:
    """namespace/name of an identity of the demo, where account and workload share a name."""
    *_, namespace, _, account = identity.split("/")
    return f"{namespace}/{account}"


def show_identities(voice: Voice, scene: Scene, pairs: set[Pair]) -> None:
    """Who is who: how the node told the workload, and what the other end saw."""
    for actor in scene.actors:
        (identity,) = {i for pair in pairs for i in pair if workload(i) == actor.workload}
        voice.say(f"      {actor.node:<6} {actor.told:<20} {identity}")


def mesh_yaml(mode: str) -> str:
    """The Mesh object in a mode."""
    return (
        "apiVersion: culvert/v1\nkind: Mesh\nmetadata: {name: mesh}\n"
        f"spec: {{trustDomain: {TRUST_DOMAIN}, mode: {mode}}}\n"
    )


async def tables(voice: Voice, scene: Scene) -> None:
    """The tables of the command line, as on the machine db-1."""
    voice.say()
    voice.say("What the machine db-1 says of itself:")
    node = scene.mesh.nodes["db-1"]
    for words in (["workloads"], ["tunnels"], ["connections", "--last", "13"], ["certificates"], ["status"]):
        voice.table(f"culvert {' '.join(words)}", await scene.mesh.on(node, *words))


def write_doorway(scene: Scene) -> None:
    """Write `at`, which runs a command as if on one of the machines, or as one of the workloads."""
    directory = scene.lab.directory
    lines = ["#!/bin/sh", "# at PLACE COMMAND...: run a command on a machine, or as a workload, of the demo", "set -e"]
    lines += ['place=$1; shift; case "$place" in']
    for name, node in scene.mesh.nodes.items():
        env = " ".join(shlex.quote(f"{k}={v}") for k, v in node.env.items())
        lines.append(f'{name}) set -- nsenter --net={node.machine.namespace.path} env {env} "$@";;')
    env = " ".join(shlex.quote(f"{k}={v}") for k, v in scene.mesh.env.items())
    lines.append(f'centre) set -- nsenter --net={scene.mesh.centre.namespace.path} env {env} "$@";;')
    lines.append(f'outsider) set -- nsenter --net={scene.outsider.namespace.path} "$@";;')
    for actor in scene.actors:
        inside = " ".join(shlex.quote(word) for word in actor.place.command([]))
        lines.append(f'{actor.workload}) set -- {inside} "$@";;')
    lines += ['*) echo "no such place: $place" >&2; exit 2;; esac', f'PATH={directory}/bin:$PATH exec "$@"']
    (directory / "at").write_text("\n".join(lines) + "\n")
    (directory / "at").chmod(0o755)
    (directory / "bin").mkdir()
    (directory / "bin" / "culvert").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m agent.cli "$@"\n')
    (directory / "bin" / "culvert").chmod(0o755)


def invite(voice: Voice, scene: Scene, outside: int) -> None:
    """Say how to look around."""
    enter = f"nsenter --target {outside} --mount"
    if world.privilege() is world.Privilege.USER:
        enter += " --user --preserve-credentials"
    elif os.environ.get("SUDO_UID"):
        enter = f"sudo {enter}"
    voice.say()
    voice.say("Still running. In another terminal:", bold=True)
    voice.say(f"  alias at='{enter} {scene.lab.directory}/at'")
    for line in (
        "at db-1 culvert connections",
        "at web-1 culvert tunnels",
        f"at {scene.callers[0].workload} curl -s {scene.url} | wc -c",
        "at centre culvert get workloads",
        "at web-1 culvert capture plan",
    ):
        voice.say(f"  {line}")
    voice.say("Ctrl-C here ends everything and leaves nothing behind.")
