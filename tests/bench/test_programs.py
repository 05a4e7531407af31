"""The load generators against a real server: what they count as wrong must be wrong, and nothing else."""

import json
import subprocess
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from bench.programs import churn, command, idle_connections, open_loop
from bench.programs.open_loop import quantiles


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    body = b"x" * 1024
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients here end in the middle on purpose


@pytest.fixture(params=[b"x" * 1024, b"y" * 1024], ids=["right", "wrong"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    handler = type("Given", (Handler,), {"body": request.param})
    with Server(("127.0.0.1", 0), handler) as found:
        thread = Thread(target=found.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def right(server: Server) -> bool:
    return server.RequestHandlerClass.body == Handler.body  # type: ignore[attr-defined]  # the fixture's own class


def output(argv: list[str]) -> list[dict[str, float]]:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_open_loop_keeps_its_rate(server: Server) -> None:
    (found,) = output(command(open_loop, "127.0.0.1", server.server_port, 200, 4, 0.5))
    assert found["requests"] == 100
    assert found["bad"] == (0 if right(server) else 100)
    assert 0 < found["p50"] <= found["p99"] <= found["max"]


def test_idle_connections_are_opened_used_and_held(server: Server) -> None:
    opened, ended = output(command(idle_connections, "127.0.0.1", server.server_port, 20))
    assert (opened["bad"], ended["lost"]) == (0 if right(server) else 20, 0)


def test_churn_expects_answers_from_half_its_connections(server: Server) -> None:
    (found,) = output(command(churn, "127.0.0.1", server.server_port, 0.4, 100))
    assert found["connections"] == 40
    assert found["bad"] == (0 if right(server) else 24)  # of ten kinds six wait for a whole answer


def test_quantiles_in_microseconds() -> None:
    found = quantiles([n / 1000 for n in range(1, 1001)])
    assert found == {"p50": 501_000, "p90": 901_000, "p99": 991_000, "p999": 1_000_000, "max": 1_000_000}
    assert quantiles([]) == {}
