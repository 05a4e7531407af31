"""An ear on one interface, for places where a lab has none: `ear.py INTERFACE MARKER PORT`. It listens until SIGTERM,
and prints what it heard, as JSON: `clear` bytes of the marker, `opened` connections to the port outside of tunnels,
`tunnelled` bytes; `lost` are the packets that it missed."""

import json
import select
import signal
import socket
import sys

from agent.lab.sniffer import tap


def main(interface: str, marker: str, port: int) -> None:
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
        sniffer = tap(sock, interface)
        sniffer.restart(marker.encode())
        print("listening", file=sys.stderr, flush=True)
        while not told:
            select.select([sock], [], [], 0.05)
            sniffer.drain()
        leaks = sniffer.leaks
        opened = sum(flow[3] == port for flow in leaks.opened)
        heard = {"clear": leaks.clear, "opened": opened, "tunnelled": leaks.tunnelled, "lost": sniffer.lost}
        print(json.dumps(heard), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
