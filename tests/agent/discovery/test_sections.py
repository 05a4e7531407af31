import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.discovery.sections import Marked, has_section, marked, slice_path, spelled, unit_workload
from agent.discovery.units import _pattern
from ca.identity import check_name
from ca.resources.capture import FailMode
from ca.resources.workload import Match


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["[Service]\nLabels=a=b\n"], None),
        (["# [X-Culvert]\n"], None),
        (["[X-Culvert]\n"], Marked({})),
        (["[X-Culvert]\nLabels=a=b  c=d\nPorts=80, 443\n"], Marked({"a": "b", "c": "d"}, (80, 443))),
        (["[X-Culvert]\nLabels=a=b \\\n  c=d\n"], Marked({"a": "b", "c": "d"})),
        (["[X-Culvert]\nLabels=a=b\n[Service]\nLabels=x=y\n[X-Culvert]\nLabels=e=f\n"], Marked({"a": "b", "e": "f"})),
        (["[X-Culvert]\nLabels=a=b\nPorts=1\n", "[X-Culvert]\nLabels=\nLabels=c=d\nPorts=\n"], Marked({"c": "d"})),
        (["[X-Culvert]\nPorts=1\n", "[X-Culvert]\nPorts=2\n"], Marked({}, (1, 2))),
        (["[X-Culvert]\nServiceAccount=a\nName=n\n", "", "[X-Culvert]\nServiceAccount=b\nNamespace=s\n"],
         Marked({}, None, "b", "s", "n")),
    ],
)  # fmt: skip
def test_what_the_files_of_a_unit_say(files: list[str], says: Marked | None) -> None:
    assert marked(files) == says
    assert any(has_section(f) for f in files) == (says is not None)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("Label=a=b", "'Label' is no setting of it; did you mean Labels"),
        ("nonsense", "'nonsense' is no setting"),
        ("Labels=a", "label 'a' is no KEY=VALUE"),
        ("Ports=http", "port 'http' is no number"),
    ],
)
def test_what_makes_no_sense(line: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        marked([f"[X-Culvert]\n{line}\n"])


def test_defaults_of_a_unit() -> None:
    found = unit_workload("My_App@1.service", Marked({}), "a/b", "n1")
    assert (found.namespace, found.name, found.service_account) == ("default", "my-app-1-n1", "my-app")
    assert (found.match, found.ports) == (Match(cgroup="a/b"), None)
    assert found.workload("n1", ()).spec.fail_mode is FailMode.CLOSED


def test_a_unit_may_fail_open() -> None:
    says = marked(["[X-Culvert]\nFailMode=open\n"])
    assert says is not None
    spec = unit_workload("a.service", says, "a/b", "n1").workload("n1", (80,)).spec
    assert (spec.fail_mode, spec.service_account, spec.ports) == (FailMode.OPEN, "a", (80,))
    with pytest.raises(ValueError, match="fail mode 'maybe': use closed or open"):
        unit_workload("a.service", Marked({}, fail_mode="maybe"), "a/b", "n1")


@pytest.mark.parametrize(
    ("unit", "path"), [("-.slice", ""), ("a.slice", "a.slice"), ("a-b-c.slice", "a.slice/a-b.slice/a-b-c.slice")]
)
def test_slices_lie_in_each_other(unit: str, path: str) -> None:
    assert slice_path(unit) == path


@pytest.mark.parametrize(
    ("file", "units"),
    [
        ("a.service", "a.service"), ("a@.service", "a@*.service"), ("a@1.service", "a@1.service"),
        ("a-.service", "a-*.service"), ("service", "*.service"), ("a-b.slice", "a-b.slice"),
    ],
)  # fmt: skip
def test_what_a_file_is_about(file: str, units: str) -> None:
    assert _pattern(file) == units


@given(st.text(min_size=1, max_size=300))
def test_any_text_can_be_spelled_as_a_name(text: str) -> None:
    name = spelled(text)
    check_name(name, "name")
    assert spelled(name) == name


def test_long_names_stay_apart() -> None:
    assert spelled("a" * 80) != spelled("a" * 81)


@given(st.lists(st.text(max_size=200), max_size=3))
def test_arbitrary_files_are_understood_or_refused(texts: list[str]) -> None:
    try:
        found = marked([f"[X-Culvert]\n{t}" for t in texts])
    except ValueError:
        return
    assert bool(found) is bool(texts)
