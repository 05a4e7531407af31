"""A program for test_world: opens a lab inside a world and stays until it is told to end."""

import os
import sys

import trio

from agent.lab import programs, world
from agent.lab.lab import open_lab
from agent.lab.place import Place


async def main(stay: bool) -> None:
    outside = world.outside_pid()
    async with open_lab() as lab:
        one = lab.topology.machine("one")
        pod = lab.topology.pod(one, "pod")
        server = lab.start("greeter", Place(pod.namespace), programs.greeter(pod.address, 7000, "word"))
        await server.listening(7000)
        said = await programs.run(Place(one.namespace), programs.hear(pod.address, 7000, "ho"))
        assert outside > 1
        print(os.getpid(), world.privilege().value, said.output.decode().split(), flush=True)
        if stay:
            await world.ended()
            print("told to end", flush=True)
    print("left", flush=True)


if __name__ == "__main__":
    trio.run(main, "stay" in sys.argv)
    sys.exit(7)
