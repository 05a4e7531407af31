"""The section `[X-Culvert]` of unit files, and what it says. Pure.

    [X-Culvert]
    Labels=app=web mesh=on
    ServiceAccount=web
    Ports=8080 8443
    Namespace=shop
    Name=web-1
    FailMode=closed

systemd leaves sections that begin with X- to others. Its own rules for files hold: later ones go over earlier ones,
lists add up, an empty value begins a list afresh.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from agent.discovery.found import Found, failing
from ca.hints import did_you_mean
from ca.resources.workload import Match

SECTION = "X-Culvert"
NAMESPACE = "default"
"""Of a unit, container or user that says none."""

_KEYS = ("Labels", "ServiceAccount", "Ports", "Namespace", "Name", "FailMode")
_HEADER = re.compile(r"\s*\[([^\]]*)\]\s*")


@dataclass(frozen=True, slots=True)
class Marked:
    """What the sections of one unit say. `ports` is None if they say nothing of them."""

    labels: dict[str, str]
    ports: tuple[int, ...] | None = None
    service_account: str = ""
    namespace: str = ""
    name: str = ""
    fail_mode: str = ""


def has_section(text: str) -> bool:
    """Whether a file has the section; cheap."""
    return f"[{SECTION}]" in text and any(True for _ in _lines(text))


def marked(files: Iterable[str]) -> Marked | None:
    """What the texts of a unit's file and drop-ins, in systemd's order, say together; None if none has the section.
    ValueError for what cannot be understood."""
    labels: dict[str, str] = {}
    ports: list[int] | None = None
    names: dict[str, str] = {}
    any_section = False
    for text in files:
        for line in _lines(text):
            any_section = True
            if not line:
                continue
            key, equals, value = (part.strip() for part in line.partition("="))
            if not equals or key not in _KEYS:
                raise ValueError(f"[{SECTION}] {line[:80]!r}: {key!r} is no setting of it{did_you_mean(key, _KEYS)}")
            if key == "Labels":
                labels = labels | pairs(value) if value else {}
            elif key == "Ports":
                ports = [*(ports or []), *numbers(value)] if value else None
            else:
                names[key] = value
    if not any_section:
        return None
    found = None if ports is None else tuple(dict.fromkeys(ports))
    says = (names.get(key, "") for key in ("ServiceAccount", "Namespace", "Name", "FailMode"))
    return Marked(labels, found, *says)


def pairs(text: str) -> dict[str, str]:
    """`app=web mesh=on`, also with commas between. ValueError."""
    found = {}
    for word in re.split(r"[\s,]+", text.strip()):
        key, equals, value = word.strip("\"'").partition("=")
        if not equals:
            raise ValueError(f"label {word!r} is no KEY=VALUE")
        found[key] = value
    return found


def numbers(text: str) -> list[int]:
    """`80 443`, also with commas between. ValueError."""
    words = [w for w in re.split(r"[\s,]+", text.strip()) if w]
    for word in words:
        if not re.fullmatch(r"[0-9]{1,5}(/tcp)?", word):
            raise ValueError(f"port {word!r} is no number")
    return [int(word.removesuffix("/tcp")) for word in words]


def unit_workload(unit: str, marks: Marked, cgroup: str, node: str) -> Found:
    """The workload of a unit. ValueError for what could be none."""
    stem, _, _ = unit.rpartition(".")
    account = marks.service_account or spelled(stem.partition("@")[0])
    return Found(
        "systemd",
        unit,
        marks.namespace or NAMESPACE,
        marks.name or named(stem, node),
        account,
        Match(cgroup=cgroup),
        marks.ports,
        marks.labels,
        more=failing(marks.fail_mode, node, account),
    )


def slice_path(unit: str) -> str:
    """The cgroup of a slice: a-b.slice lies in a.slice, the root slice `-.slice` is the root."""
    name = unit.removesuffix(".slice")
    if name in ("-", ""):
        return ""
    parts = name.split("-")
    return "/".join("-".join(parts[: n + 1]) + ".slice" for n in range(len(parts)))


def named(stem: str, node: str) -> str:
    """A name that no other node gives to what has the same name there."""
    return spelled(f"{stem}-{node}")


def spelled(text: str) -> str:
    """`text` as a name of ours: lower case, other characters as dashes, and if it is too long its end as a hash."""
    name = re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.") or "x"
    if len(name) > 63:
        name = f"{name[:54].rstrip('-.')}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return name


def _lines(text: str) -> Iterator[str]:
    """The lines of the section, continued ones joined; an empty one for each header, so that a section without lines
    is one too."""
    inside = False
    held = ""
    for raw in text.splitlines():
        line = held + raw.strip()
        held = ""
        if not line or line[0] in "#;":
            continue
        if line.endswith("\\"):
            held = line[:-1] + " "
        elif header := _HEADER.fullmatch(line):
            inside = header[1] == SECTION
            if inside:
                yield ""
        elif inside:
            yield line
    if held and inside:
        yield held.strip()
