import pwd
import subprocess
from pathlib import Path

import pytest
import trio

from agent.discovery import users
from agent.discovery.found import Seen
from agent.discovery.users import Users, look
from ca.resources.capture import FailMode
from ca.resources.workload import Match

FILE = """
[root]
namespace = "shop"
labels = "app=db mesh=on"
ports = [5432]
["64031"]
service_account = "batch"
name = "nightly"
fail_mode = "open"
"""


def test_users_by_name_and_number(tmp_path: Path) -> None:
    file = tmp_path / "users.toml"
    file.write_text(FILE)
    _, seen, lacking = look(file, "n1", None)
    assert (seen.problems, seen.whole, lacking) == ((), True, False)
    root, batch = seen.found
    assert (root.title, root.service_account, root.match, root.ports) == ("shop/root-n1", "root", Match(uid=0), (5432,))
    assert batch.workload("n1", ()).spec.fail_mode is FailMode.OPEN
    assert dict(root.labels) == {"app": "db", "mesh": "on"}
    assert (batch.title, batch.service_account, batch.match, batch.ports) == (
        "default/nightly", "batch", Match(uid=64031), None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[root", "Expected ']'"),
        ("root = 1", r"[root]: Expected `object`, got `int`"),
        ("[root]\nlabel = 'a=b'", "[root]: Object contains unknown field `label`"),
        ("[root]\nports = ['x']", "[root]: Expected `int`, got `str`"),
        ("#" * (users.MOST_BYTES + 1), "it has more than"),
    ],
)
def test_a_broken_file_is_named_and_what_it_said_stands(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "users.toml"
    file.write_text(FILE)
    good, before, _ = look(file, "n1", None)
    file.write_text(text)
    _, seen, _ = look(file, "n1", good)
    assert (seen.found, seen.whole) == (before.found, True)
    assert why in seen.problems[0]
    _, seen, _ = look(file, "n1", None)
    assert (seen.found, seen.whole) == ((), False)
    file.unlink()
    assert look(file, "n1", good)[1] == Seen()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[nobody-there]", "[nobody-there]: there is no such user yet"),
        ("[root]\nports = [22]", "port 22 is never captured"),
        ("[root]\nlabels = 'x'", "label 'x' is no KEY=VALUE"),
        ("[99999999999]", "[99999999999]: Expected `int` <= 4294967294"),
    ],
)
def test_one_user_that_makes_no_sense_keeps_no_other_out(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "users.toml"
    file.write_text(f"['64031']\n{text}\n")
    _, seen, _ = look(file, "n1", None)
    assert [f.match for f in seen.found] == [Match(uid=64031)]
    assert why in seen.problems[0]


async def test_changes_of_the_file_and_of_the_users_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that names a user who is made later, by the system's own tool in a root directory of the test's."""
    passwd = tmp_path / "etc" / "passwd"
    passwd.parent.mkdir()
    passwd.write_text("root:x:0:0::/:/bin/sh\n")

    def known(name: str) -> pwd.struct_passwd:
        rows = (line.split(":") for line in passwd.read_text().splitlines())
        row = next((r for r in rows if r[0] == name), None)
        if row is None:
            raise KeyError(name)
        return pwd.struct_passwd((row[0], row[1], int(row[2]), int(row[3]), *row[4:]))

    monkeypatch.setattr(pwd, "getpwnam", known)
    monkeypatch.setattr(users, "_PASSWD", passwd.parent)
    monkeypatch.setattr(users, "AGAIN", 60.0)  # so that it is the kernel that tells
    send, receive = trio.open_memory_channel[Seen](100)
    file = tmp_path / "culvert" / "users.toml"

    async def uids(*wanted: int) -> bool:
        """Whether these are seen soon."""
        with trio.move_on_after(3):
            while [f.match.uid for f in (await receive.receive()).found] != list(wanted):
                pass
            return True
        return False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Users(file, "n1").run, send.send_nowait)
        assert await uids()
        file.parent.mkdir()
        file.write_text("[root]\n[later]\n")
        assert await uids(0)
        new = passwd.with_suffix(".new")
        new.write_text(passwd.read_text() + "later:x:7:7::/:/bin/sh\n")
        await trio.to_thread.run_sync(lambda: subprocess.run(["mv", new, passwd], check=True))
        assert await uids(0, 7)
        file.write_text("[later]\n")
        assert await uids(7)
        file.unlink()
        assert await uids()
        nursery.cancel_scope.cancel()
