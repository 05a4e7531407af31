import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agent.cli.mesh import Commands, mesh

SHOP = """\
kind: Node
metadata: {name: web-1}
---
kind: Workload
metadata: {name: web, namespace: shop, labels: {tier: front}}
spec:
  node: web-1
  serviceAccount: web
  ports: [8080]
  match: {uid: 1000}
---
kind: Workload
metadata: {name: api, namespace: shop}
spec: {node: web-1, serviceAccount: api, match: {cgroup: system.slice/api.service}}
"""


@pytest.fixture(scope="module")
def culvert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    directory = tmp_path_factory.mktemp("mesh")
    with mesh(directory / "centre") as commands:
        (directory / "shop.yaml").write_text(SHOP)
        commands.ok("apply", "-f", str(directory / "shop.yaml"))
        yield commands


@pytest.fixture
def shop(culvert: Commands) -> str:
    return str(culvert.directory.parent / "shop.yaml")


def test_what_is_so_already_is_unchanged(culvert: Commands, shop: str) -> None:
    done = culvert("apply", "-f", shop)
    assert done.stdout == "node web-1 unchanged\nworkload shop/web unchanged\nworkload shop/api unchanged\n"
    assert done.stderr.startswith("revision ")


def test_apply_reads_stdin_and_directories(culvert: Commands, tmp_path: Path) -> None:
    assert culvert.ok("apply", "-f", "-", "--dry-run", stdin="kind: Node\nmetadata: {name: n1}\n") == (
        "node n1 would change\n"
    )
    assert "n1" not in culvert.ok("get", "nodes")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "n.yaml").write_text("kind: Node\nmetadata: {name: n2}\n")
    (tmp_path / "n.yml").write_text("kind: Node\nmetadata: {name: n3}\n")
    (tmp_path / "README").write_text("not this")
    assert culvert.ok("apply", "-f", str(tmp_path)) == "node n2 applied\nnode n3 applied\n"
    assert culvert.ok("delete", "-f", str(tmp_path)) == "node n2 deleted\nnode n3 deleted\n"


def test_faults_of_the_file_name_their_lines(culvert: Commands, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(SHOP.replace("serviceAccount: web", "serviceacount: web").replace("8080", "22"))
    assert culvert.refused("apply", "-f", str(bad)).replace(str(bad), "BAD") == (
        "culvert: nothing was changed:\n"
        "BAD:7: workload shop/web: spec.serviceAccount: is missing\n"
        "BAD:8: workload shop/web: spec.serviceacount: no such field; did you mean serviceAccount?\n"
        "BAD:9: workload shop/web: spec.ports: port 22 is never captured (SSH and Culvert's own ports stay reachable): "
        "leave it out\n"
    )


def test_of_a_directory_the_file_is_named_that_is_no_text(culvert: Commands, tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(SHOP)
    (tmp_path / "other.yaml").write_bytes(b"\xff\xfe")
    assert f"{tmp_path}/other.yaml: is no text in UTF-8" in culvert.refused("apply", "-f", str(tmp_path))


def test_faults_found_by_the_centre_name_their_lines_too(culvert: Commands, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(SHOP.replace("node: web-1\n", "node: web1\n").replace("name: api", "name: api2"))
    assert culvert.refused("apply", "-f", str(bad)).replace(str(bad), "BAD") == (
        "culvert: nothing was changed:\n"
        "BAD:12: workload shop/api2: cgroup /system.slice/api.service of node web-1 is already that of workload "
        "shop/api; give one of them another\n"
        "BAD:7: workload shop/web: spec.node: there is no node web1; did you mean web-1?\n"
    )


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["apply", "-f", "/nowhere.yaml"], 1, "/nowhere.yaml: cannot be read: No such file or directory"),
        (["apply"], 2, "give -f FILE"),
        (["get", "wokloads"], 2, "'wokloads' is no kind; did you mean workloads?"),
        (["get", "workload", "shop/wep"], 1, "workload shop/wep: there is none; did you mean workload shop/web?"),
        (["label", "workload", "web", "mesh=on"], 2, "a workload is named NAMESPACE/NAME"),
        (["label", "workload", "shop/web", "mesh"], 2, "'mesh' is neither KEY=VALUE nor KEY-"),
        (["label", "workload", "shop/wep", "mesh=on"], 1, "there is none; did you mean workload shop/web?"),
        (["label", "workload", "shop/web", "mesh=a b"], 1, "workload shop/web: label mesh='a b'"),
        (["delete", "node", "web-1"], 1, "node web-1: still has workloads: shop/api, shop/web"),
        (["delete"], 2, "give either KIND and NAME, or -f FILE"),
        (["get", "nodes", "--credential", "/nowhere.json"], 1, "/nowhere.json: cannot be read"),
    ],
)
def test_refused(culvert: Commands, words: list[str], code: int, said: str) -> None:
    assert said in culvert.refused(*words, code=code)


def test_get_shows_and_prints_what_can_be_applied_again(culvert: Commands) -> None:
    lines = culvert.ok("get", "workloads", COLUMNS="80").splitlines()
    assert [line.split()[0] for line in lines] == ["WORKLOAD", "shop/api", "shop/web"]
    assert max(map(len, lines)) <= 80
    printed = culvert.ok("get", "workloads", "-n", "shop", "-o", "yaml")
    assert culvert.ok("apply", "-f", "-", stdin=printed) == "workload shop/api unchanged\nworkload shop/web unchanged\n"
    listed = culvert.ok("get", "workload", "shop/web", "-o", "json")
    assert json.loads(listed)[0]["spec"]["match"] == {"uid": 1000}
    assert culvert.ok("apply", "-f", "-", stdin=listed) == "workload shop/web unchanged\n"
    assert culvert("get", "workloads", "-n", "bank").stderr == "there is no workload in namespace bank\n"
    assert "shop.example" in culvert.ok("get", "mesh")


def test_a_label_enrols(culvert: Commands) -> None:
    def mesh_column() -> str:
        return culvert.ok("get", "workload", "shop/web").splitlines()[1].split()[3]

    assert mesh_column() == "off"
    assert culvert.ok("label", "workload", "shop/web", "mesh=on") == "workload shop/web labelled\n"
    assert culvert.ok("label", "workload", "shop/web", "mesh=on") == "workload shop/web unchanged\n"
    assert mesh_column() == "on"
    culvert.ok("label", "workload", "shop/web", "mesh-", "extra=1")
    assert mesh_column() == "off"
    assert culvert.ok("label", "workload", "shop/web", "extra-") == "workload shop/web labelled\n"


def test_schema_is_one(culvert: Commands) -> None:
    schema = json.loads(culvert.ok("schema"))
    assert "Workload" in schema["$defs"]
