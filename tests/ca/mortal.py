"""A centre that can be told at which commit to die: python -m tests.ca.mortal DIRECTORY HOST:PORT [NUMBER STAGE]

Every stage of every commit is written to DIRECTORY/commits first. At the given one the process gets SIGKILL from
itself: no handler, no flush, no goodbye. SIGUSR1 has the issuing certificate replaced as if that were due; what came of
it is the line `issuer FINGERPRINT` on stdout.
"""

import os
import signal
import sys
from pathlib import Path

import structlog
import trio

from ca import server, x509
from ca.authority import Authority
from ca.central import CentralSettings
from ca.centre import Centre
from ca.store import Stage
from ca.store.sqlite import SqliteStore


async def serve(centre: Centre, settings: CentralSettings) -> None:
    listeners = await server.listen(settings.listen)
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve, centre, settings, listeners)
            print("ready", flush=True)
            async for _ in signals:
                centre.authority = await trio.to_thread.run_sync(centre.authority.renew_issuer, centre.now())
                print("issuer", x509.fingerprint(centre.authority.issuer.cert), flush=True)


def main(directory: str, listen: str, number: str = "0", stage: str = "") -> None:
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    record = os.open(Path(directory) / "commits", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def hook(reached: Stage, commit: int) -> None:
        os.write(record, f"{commit} {reached.value}\n".encode())
        if (commit, reached.value) == (int(number), stage):
            os.kill(os.getpid(), signal.SIGKILL)

    with SqliteStore.open(Path(directory), hook=hook) as store:
        centre = Centre(store, Authority.open(store, store.keys), advertise=listen, tick=0.01)
        trio.run(serve, centre, CentralSettings(dir=Path(directory), listen=listen))


if __name__ == "__main__":
    main(*sys.argv[1:])
