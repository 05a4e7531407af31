"""HOST PORT N: open N connections, one GET on each, then hold them until stdin ends.

Prints one line of JSON when all are open (open, bad) and one at the end (lost: those the far end closed meanwhile).
"""

import asyncio
import json
import sys

BODY = 1024
AT_ONCE = 32
SECONDS = 20


async def main(host: str, port: int, count: int) -> None:
    gate = asyncio.Semaphore(AT_ONCE)
    held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def one() -> bool:
        async with gate:
            try:
                reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), SECONDS)
                writer.write(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
                head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SECONDS)
                body = await asyncio.wait_for(reader.readexactly(BODY), SECONDS)
            except (TimeoutError, OSError, asyncio.IncompleteReadError):
                return False
            held.append((reader, writer))
            return head.startswith(b"HTTP/1.1 200 ") and body == b"x" * BODY

    good = sum(await asyncio.gather(*(one() for _ in range(count))))
    print(json.dumps({"open": good, "bad": count - good}), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    print(json.dumps({"lost": sum(reader.at_eof() for reader, _ in held)}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
