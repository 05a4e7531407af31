"""The demo, as it runs inside a world of its own: `python -m agent.lab.demo [--keep] [--json]`.

Two nodes, a centre, an outsider and unmodified programs. The same requests are sent before and after enrolment, with a
payload that is random for each run, while the wire is listened to; every answer is checked, and each claim that the
reader sees is an assertion here: a demo that cannot fail proves nothing.
"""

import json
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import trio

from agent.lab import demo_look, programs, world
from agent.lab.demo_scene import Request, Scene, build
from agent.lab.demo_voice import Voice
from agent.lab.lab import Lab, open_lab
from agent.lab.mesh import TRUST_DOMAIN, CulvertError
from agent.lab.place import Place
from agent.lab.process import Process, ProcessError
from agent.lab.sniffer import Sniffer, sniff


class DisproofError(Exception):
    """Something that the demo claims was not so; the message says what was seen instead."""


@dataclass
class Summary:
    """What `--json` prints. Byte counts are of the payload that could be read on the wire; `tls_bytes_after` of what
    went through tunnels; `identities` those that both ends of a connection recorded alike."""

    requests: int = 0
    ok: int = 0
    plaintext_bytes_before: int = 0
    plaintext_bytes_after: int = 0
    tls_bytes_after: int = 0
    refused: int = 0
    identities: list[str] = field(default_factory=list)
    survived_centre_loss: bool = False


class Demo:
    """One run. The steps are in the order of the story."""

    def __init__(self, scene: Scene, sniffer: Sniffer, voice: Voice) -> None:
        self.scene, self.sniffer, self.voice = scene, sniffer, voice
        self.summary = Summary()
        self._programs: list[Process] = []

    async def run(self) -> None:
        """Tell it all; DisproofError at the first claim that does not hold."""
        await self.start_mesh()
        await self.before()
        await self.enrol()
        await self.after()
        await self.identities()
        await self.strict()
        await self.without_centre()

    async def start_mesh(self) -> None:
        mesh = self.scene.mesh
        with self.voice.step("programs") as step:
            self._programs = self.scene.start()
            for program, actor in zip(self._programs, (self.scene.web, self.scene.mail), strict=True):
                await program.listening(actor.port)
            step.result = "a web server and a server that speaks first, on db-1; neither knows of a mesh"
        with self.voice.step("centre") as step:
            await mesh.found()
            step.result = f"certificate authority and registry of {TRUST_DOMAIN}"
        with self.voice.step("join") as step:
            async with trio.open_nursery() as nursery:
                for name, machine in self.scene.machines.items():
                    nursery.start_soon(mesh.add, name, machine)
            step.result = f"{' and '.join(mesh.nodes)} with a one-time token each; their agents run"
        with self.voice.step("apply") as step:
            await mesh.apply("---\n".join(actor.yaml() for actor in self.scene.actors))
            step.result = f"{len(self.scene.actors)} workloads are known, none is enrolled"

    async def before(self) -> None:
        with self.voice.step("before") as step:
            sent, clear, tunnelled = await self.traffic()
            self.summary.plaintext_bytes_before = clear
            step.result = f"{sent}; on the wire anybody reads {clear:,} bytes of it"
            step.strong = True
            expect(clear >= self.payload, f"the sniffer saw only {clear} of {self.payload} bytes of payload in clear")
            expect(tunnelled == 0, f"{tunnelled} bytes went through a tunnel before enrolment")

    async def enrol(self) -> None:
        names = [actor.workload for actor in self.scene.actors]
        with self.voice.step("enrol") as step:
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(self.scene.mesh.operator, "label", "workload", name, "mesh=on")
            await self.scene.mesh.settled()
            step.result = f"culvert label workload {names[0]} mesh=on, and {len(names) - 1} more; nothing is restarted"

    async def after(self) -> None:
        with self.voice.step("after") as step:
            sent, clear, tunnelled = await self.traffic()
            self.summary.plaintext_bytes_after, self.summary.tls_bytes_after = clear, tunnelled
            step.result = f"{sent}; readable: {clear:,} bytes; TLS on port 15008: {tunnelled:,} bytes"
            step.strong = True
            expect(clear == 0, f"{clear} bytes of payload were on the wire in clear after enrolment")
            expect(tunnelled >= self.payload, f"only {tunnelled} bytes of TLS for {self.payload} bytes of payload")

    async def identities(self) -> None:
        with self.voice.step("identities") as step:
            pairs = await demo_look.agreed(self.scene)
            self.summary.identities = sorted({identity for pair in pairs for identity in pair})
            wanted = {(r.caller.workload, r.server.workload) for r in self.scene.requests()}
            seen = {(demo_look.workload(a), demo_look.workload(b)) for a, b in pairs}
            step.result = f"both ends recorded the same two names for {len(seen & wanted)} pairs of workloads"
            expect(wanted <= seen, f"no identities that both ends agree on for {sorted(wanted - seen)}")
        demo_look.show_identities(self.voice, self.scene, pairs)

    async def strict(self) -> None:
        with self.voice.step("outsider") as step:
            expect(await self.outsider(), "the outsider got no answer while the mesh was PERMISSIVE")
            step.result = "a machine of no mesh still gets an answer in plaintext: mode PERMISSIVE"
        with self.voice.step("strict") as step:
            await self.scene.mesh.apply(demo_look.mesh_yaml("STRICT"))
            expect(not await self.outsider(), "the outsider got an answer although the mesh was STRICT")
            self.summary.refused = await demo_look.refusals(self.scene)
            expect(self.summary.refused > 0, "no refusal of the outsider is recorded on db-1")
            ok = await self.all_right()
            step.result = f"mode STRICT: the outsider is refused; the enrolled go on, {ok} of {ok} answers right"

    async def without_centre(self) -> None:
        with self.voice.step("centre gone") as step:
            assert self.scene.mesh.process is not None
            await self.scene.mesh.process.kill()
            ok = await self.all_right()
            self.summary.survived_centre_loss = True
            step.result = f"its process is killed; traffic goes on, {ok} of {ok} answers right"
            expect(all(program.running for program in self._programs), "a server was restarted")
        with self.voice.step("centre back") as step:
            await self.scene.mesh.start_centre()
            await self.scene.mesh.settled()
            step.result = "started again; both nodes have found it and report what they act on"

    @property
    def payload(self) -> int:
        """Bytes of the marker that one round of requests puts on the wire."""
        return sum(request.marked for request in self.scene.requests())

    async def traffic(self) -> tuple[str, int, int]:
        """One round with the wire listened to: (what was sent, bytes in clear, bytes in tunnels)."""
        self.sniffer.restart(self.scene.marker)
        ok = await self.all_right()
        self.sniffer.drain()
        expect(self.sniffer.lost == 0, "the sniffer missed packets, so its count would prove nothing")
        return f"{ok} of {ok} answers right", self.sniffer.leaks.clear, self.sniffer.leaks.tunnelled

    async def all_right(self) -> int:
        """Send every request and check every answer; how many there were."""
        requests = list(self.scene.requests())
        wrong: list[str] = []

        async def send(request: Request) -> None:
            ran = await programs.run(request.caller.place, request.argv)
            self.summary.requests += 1
            if request.right(ran):
                self.summary.ok += 1
            else:
                what = ran.errors or f"{len(ran.output)} bytes that are not the right ones"
                wrong.append(f"{request.caller.workload} -> {request.server.workload}: {what}")

        async with trio.open_nursery() as nursery:
            for request in requests:
                nursery.start_soon(send, request)
        expect(not wrong, f"{len(wrong)} of {len(requests)} answers were wrong: {'; '.join(wrong)}")
        return len(requests)

    async def outsider(self) -> bool:
        """Whether the outsider's request was answered."""
        ran = await programs.run(Place(self.scene.outsider.namespace), programs.get(self.scene.url))
        return ran.ok and ran.output == self.scene.body


def expect(true: bool, otherwise: str) -> None:
    """Raise DisproofError unless `true`."""
    if not true:
        raise DisproofError(otherwise)


async def tell(lab: Lab, voice: Voice, keep: bool) -> Summary:
    """Run the demo in `lab`; with `keep`, then wait until the world ends."""
    outside = world.outside_pid()
    privilege = world.privilege()
    marker = secrets.token_hex(16).encode()
    with voice.step("machines") as step:
        scene = build(lab, marker, privilege)
        step.result = "web-1, db-1, centre and an outsider: network namespaces on one wire"
    if privilege is world.Privilege.USER:
        voice.say("    an ordinary user has one uid and no cgroups: every workload here has a", dim=True)
        voice.say("    network namespace of its own. As root, uids and cgroups are shown too.", dim=True)
    async with sniff(lab.topology, scene.machines["web-1"].port) as sniffer:
        demo = Demo(scene, sniffer, voice)
        await demo.run()
        await demo_look.tables(voice, scene)
        if keep:
            demo_look.write_doorway(scene)
            demo_look.invite(voice, scene, outside)
            await trio.sleep_forever()
    return demo.summary


async def main(keep: bool, as_json: bool) -> int:
    """The whole of it; the exit status."""
    voice = Voice(sys.stderr if as_json else sys.stdout)
    status = 1
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_cancel_when_ended, nursery.cancel_scope)
        async with open_lab() as lab:
            try:
                summary = await tell(lab, voice, keep)
                status = 0
                if as_json:
                    print(json.dumps(asdict(summary)), flush=True)
            except* (DisproofError, CulvertError, ProcessError) as group:
                _explain(voice, lab, group)
            except* BrokenPipeError:  # nobody reads any more
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        nursery.cancel_scope.cancel()
    return status


async def _cancel_when_ended(scope: trio.CancelScope) -> None:
    await world.ended()
    scope.cancel()


def _explain(voice: Voice, lab: Lab, group: BaseExceptionGroup[Exception]) -> None:
    """What went wrong, and the last words of every process."""
    for error in _leaves(group):
        voice.say()
        voice.say(f"This did not work: {error}", bold=True)
    for process in lab.processes:
        voice.say()
        voice.say(f"--- the end of {process.log.name}", dim=True)
        voice.say(process.tail())


def _leaves(error: BaseException) -> Sequence[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for inner in error.exceptions for leaf in _leaves(inner)]
    return [error]


if __name__ == "__main__":
    sys.exit(trio.run(main, "--keep" in sys.argv, "--json" in sys.argv))
