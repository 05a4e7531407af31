"""HOST PORT BYTES: get /blob, put BYTES random bytes, delete them again; what both ends hold must be the same.

Prints one line of JSON: SHA-256 of what was got, of what was put, and of what the server then gives back.
"""

import hashlib
import http.client
import json
import os
import sys


def get(host: str, port: int, path: str) -> str:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request("GET", path)
    answer = connection.getresponse()
    if answer.status != 200:
        raise SystemExit(f"GET {path}: {answer.status}")
    digest = hashlib.sha256()
    while data := answer.read(65536):
        digest.update(data)
    connection.close()
    return digest.hexdigest()


def send(host: str, port: int, method: str, path: str, body: bytes = b"") -> None:
    connection = http.client.HTTPConnection(host, port, timeout=30)
    connection.request(method, path, body)
    answer = connection.getresponse()
    if answer.status >= 300:
        raise SystemExit(f"{method} {path}: {answer.status}")
    connection.close()


def main(host: str, port: int, count: int) -> dict[str, str]:
    body = os.urandom(count)
    path = f"/upload/{os.getpid()}"
    send(host, port, "PUT", path, body)
    try:
        back = get(host, port, path)
    finally:
        send(host, port, "DELETE", path)
    return {"got": get(host, port, "/blob"), "put": hashlib.sha256(body).hexdigest(), "back": back}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))
