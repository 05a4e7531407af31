import os
from pathlib import Path

import pytest
import trio

from agent.discovery import files, written
from agent.discovery.files import Files, look
from agent.discovery.found import Found, Seen
from ca.resources.workload import Match, WorkloadSpec

WEB = """
kind: Workload
metadata: {namespace: shop, name: web, labels: {app: web, mesh: on}}
spec: {serviceAccount: web, match: {uid: 33}, ports: [80]}
"""
API = "kind: Workload\nmetadata: {namespace: shop, name: api}\nspec: {serviceAccount: api, match: {cgroup: a/b}}\n"


def web(folder: Path) -> Found:
    labels = {"app": "web", "mesh": "on"}
    spec = WorkloadSpec("n1", "web", "", (80,), Match(uid=33))
    return Found("files", str(folder / "web.yaml"), "shop", "web", "web", Match(uid=33), (80,), labels, more=spec)


def test_a_file_says_what_apply_takes(tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(WEB)
    (tmp_path / "api.yml").write_text(API)
    (tmp_path / "notes.txt").write_text("{")
    (tmp_path / ".web.yaml.swp").write_text("{")
    (tmp_path / ".hidden.yaml").write_text("{")
    seen = look(tmp_path, "n1", {})
    assert (seen.problems, seen.whole) == ((), True)
    assert seen.found[1] == web(tmp_path)
    assert (seen.found[0].title, seen.found[0].ports) == ("shop/api", None)


def test_all_that_a_file_says_is_registered(tmp_path: Path) -> None:
    path = tmp_path / "web.yaml"
    path.write_text(WEB.replace("ports: [80]", "ports: [80], failMode: open, capture: {in: {skip: {ports: [80]}}}"))
    (found,) = look(tmp_path, "n1", {}).found
    spec = found.workload("n1", (80, 81)).spec
    assert (spec.fail_mode.value, spec.capture.in_.skip.ports, spec.ports) == ("open", (80,), (80, 81))
    path.write_text(path.read_text().replace("ports: [80], f", "f"))
    seen = look(tmp_path, "n1", {})
    assert "capture.in.skip.ports has 80, which is none of ports" in seen.problems[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no YAML"),
        ("kind: Workload\nmetadata: {namespace: shop, name: x}\n", "x.yaml:1: workload shop/x: spec: is missing"),
        (API.replace("{serv", "{node: n2, serv"), "x.yaml:3: workload shop/api: spec.node: this is node n1, not n2"),
        (API.replace("{cgroup: a/b}", "{}"), "match needs exactly one of"),
        (API.replace(", match: {cgroup: a/b}", ""), "spec.match is missing"),
        (API.replace("match:", "found: {source: files}, match:"), "spec.found is not for people to write"),
        ("kind: Node\nmetadata: {name: n1}\n", "only workloads are found in files"),
        ("x" * (written.MOST_BYTES + 1), f"it has more than {written.MOST_BYTES} bytes"),
        ("---\n".join([API.replace("api", "A B")] * 9), "more faults"),
    ],
)  # fmt: skip
def test_a_broken_file_is_named_and_the_others_count(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "web.yaml").write_text(WEB)
    (tmp_path / "x.yaml").write_text(
        text if "more faults" not in said else "---\n".join([API.replace("api", "A B")] * 9)
    )
    seen = look(tmp_path, "n1", {})
    assert seen.found == (web(tmp_path),)
    assert not seen.whole
    assert any(said in p for p in seen.problems), seen.problems
    assert all("x.yaml" in p for p in seen.problems)
    assert len(seen.problems) <= written.SHOWN + 1


def test_odd_files_are_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "dir.yaml").mkdir()
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "away.yaml").symlink_to(tmp_path / "nothing")
    seen = look(tmp_path, "n1", {})
    assert [p.partition(": ")[2] for p in seen.problems] == [
        "is no text in UTF-8: invalid start byte at byte 0",
        "it is no plain file",
        "it is no plain file",
    ]


def test_a_file_that_breaks_stands_until_it_is_mended_or_gone(tmp_path: Path) -> None:
    good: dict[Path, tuple[Found, ...]] = {}
    path = tmp_path / "web.yaml"
    path.write_text(WEB)
    assert look(tmp_path, "n1", good).found == (web(tmp_path),)
    path.write_text("{")
    seen = look(tmp_path, "n1", good)
    assert (seen.found, seen.whole, len(seen.problems)) == ((web(tmp_path),), True, 1)
    path.unlink()
    assert look(tmp_path, "n1", good) == Seen()


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_FILES", 3)
    good: dict[Path, tuple[Found, ...]] = {}
    (tmp_path / "web.yaml").write_text(WEB)
    look(tmp_path, "n1", good)
    for n in range(3):
        (tmp_path / f"{n}.yaml").write_text(API)
    seen = look(tmp_path, "n1", good)
    assert (seen.found, seen.whole) == ((web(tmp_path),), False)
    assert "more than 3 files" in seen.problems[0]


async def test_changes_are_seen_as_they_happen(tmp_path: Path) -> None:
    """Also those of a directory that is not there yet, goes, and comes back."""
    folder = tmp_path / "etc" / "culvert" / "workloads.d"
    send, receive = trio.open_memory_channel[Seen](100)

    async def names() -> list[str]:
        with trio.fail_after(3):
            return [f.name for f in (await receive.receive()).found]

    async with trio.open_nursery() as nursery:
        nursery.start_soon(Files(folder, "n1").run, send.send_nowait)
        assert await names() == []
        folder.mkdir(parents=True)
        assert await names() == []
        (folder / "web.yaml").write_text(WEB)
        assert await names() == ["web"]
        (folder / "new").write_text(API)
        assert await names() == ["web"]
        os.rename(folder / "new", folder / "api.yaml")
        assert await names() == ["api", "web"]
        os.rename(folder, tmp_path / "aside")
        assert await names() == []
        os.rename(tmp_path / "aside", folder)
        assert await names() == ["api", "web"]
        (folder / "web.yaml").write_text(WEB.replace("name: web", "name: www"))
        assert await names() == ["api", "www"]
        (folder / "api.yaml").unlink()
        assert await names() == ["www"]
        nursery.cancel_scope.cancel()
