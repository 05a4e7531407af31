import socket
import stat
from pathlib import Path

import msgspec
import pytest
import trio

from agent.answers import Done, TrialRequest
from agent.node.admin import MOST, Admin, AdminError, admin_socket
from agent.node.files import StateError
from ca.contract import Problem
from ca.http import Response, request


async def status() -> Done:
    return Done("well")


async def fails() -> Done:
    raise RuntimeError("a bug")


async def full() -> Done:
    raise StateError("/var: cannot be written: No space left on device")


async def tried(body: bytes) -> Done:
    return Done(f"for {msgspec.json.decode(body, type=TrialRequest).seconds:g} s")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "agent.sock"


@pytest.fixture
async def serving(path, nursery):
    with admin_socket(path) as sock:
        nursery.start_soon(
            Admin(
                {"status": status, "broken": fails},
                {"capture/off": status, "capture/on": full},
                {"capture/apply": tried},
            ).serve,
            sock,
        )
        yield path
        nursery.cancel_scope.cancel()


async def call(path: Path, method: str, target: str, body: bytes = b"") -> Response:
    with trio.fail_after(10):
        async with await trio.open_unix_socket(path) as stream:
            return await request(stream, method, target, host="agent", body=body)


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"seconds": -1}', b'{"seconds": 1e9}', b'{"seconds": 1, "login": 7}', b"x"]
)
async def test_orders_that_make_no_sense(serving, body):
    got = await call(serving, "POST", "/v1/capture/apply", body)
    assert got.status == 400
    assert "/v1/capture/apply: " in msgspec.json.decode(got.body, type=Problem).message


async def test_an_order(serving):
    got = await call(serving, "POST", "/v1/capture/apply", b'{"seconds": 60, "login": ["10.0.0.1", 22]}')
    assert msgspec.json.decode(got.body, type=Done).message == "for 60 s"
    assert (await call(serving, "GET", "/v1/capture/apply")).status == 405


async def test_topics_and_commands(serving):
    got = await call(serving, "GET", "/v1/status")
    assert (got.status, msgspec.json.decode(got.body, type=Done)) == (200, Done("well"))
    assert (await call(serving, "POST", "/v1/capture/off")).status == 200


@pytest.mark.parametrize(
    ("method", "target", "code", "message"),
    [
        ("GET", "/v1/capture/off", 405, "/v1/capture/off is not called with GET"),
        ("POST", "/v1/status", 405, "/v1/status is not called with POST"),
        ("DELETE", "/v1/status", 405, "not called with DELETE"),
        ("GET", "/v1/statuss", 404, "there is no /v1/statuss; did you mean /v1/status?"),
        ("POST", "/v1/capture/on", 503, "No space left"),
        ("GET", "/", 404, "there is no /"),
        ("GET", "/v2/status", 404, "there is no /v2/status"),
    ],
)
async def test_what_there_is_not(serving, method, target, code, message):
    got = await call(serving, method, target)
    assert got.status == code
    assert message in msgspec.json.decode(got.body, type=Problem).message


async def test_a_bug_in_one_answer_leaves_the_others(serving):
    assert (await call(serving, "GET", "/v1/broken")).status == 500
    assert (await call(serving, "GET", "/v1/status")).status == 200


async def test_idle_connections_are_bounded_and_do_not_lock_us_out(serving):
    held = [await trio.open_unix_socket(serving) for _ in range(MOST)]
    answers: list[int] = []

    async def ask() -> None:
        answers.append((await call(serving, "GET", "/v1/status")).status)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert answers == []
        for stream in held:
            await stream.aclose()
    assert answers == [200]


async def test_questions_of_the_centre():
    admin = Admin({"status": status}, {})
    assert await admin.answer("status") == b'{"message":"well"}'
    with pytest.raises(KeyError, match=r"there is no topic 'stat'; did you mean status"):
        await admin.answer("stat")


def test_only_the_owner_may_connect(path):
    with admin_socket(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_a_stale_socket_is_replaced(path):
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with admin_socket(path) as sock:
        assert sock.getsockname() == str(path)


def test_a_live_one_means_another_agent(path):
    with admin_socket(path):
        with pytest.raises(AdminError, match="another agent runs"), admin_socket(path):
            pass
        assert path.exists()


def test_what_is_no_socket_is_left_alone(path):
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(AdminError, match="in use"), admin_socket(path):
        pass
    assert path.read_text() == "mine"
