"""What the process may do."""

from agent.checks.rights import NEEDED, WANTED, rights

EVERYTHING = 2**41 - 1


def test_root_may_everything() -> None:
    assert rights(EVERYTHING, 0).state == "ok"


def test_each_missing_capability_is_named_with_its_use() -> None:
    for bit, (name, use) in (NEEDED | WANTED).items():
        finding = rights(EVERYTHING & ~(1 << bit), 0)
        assert finding.state == ("fail" if bit in NEEDED else "warn")
        assert f"CAP_{name} ({use})" in finding.text
        assert finding.remedy


def test_others_are_told_to_be_root() -> None:
    finding = rights(0, 1000)
    assert finding.state == "fail"
    assert finding.text.startswith("uid 1000, not root")
    assert "as root" in finding.remedy
