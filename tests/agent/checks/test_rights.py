"""What the process may do."""

from agent.checks.rights import NEEDED, WANTED, refusal, rights

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


def test_without_some_there_is_no_agent_at_all() -> None:
    for bit, name in ((12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (7, "CAP_SETUID")):
        said = refusal(EVERYTHING & ~(1 << bit), 0, 64990)
        assert said.startswith(f"root, and lacks {name} (")
        assert "CapabilityBoundingSet=" in said


def test_workers_that_stay_who_they_are_need_fewer() -> None:
    assert refusal(EVERYTHING & ~(1 << 7), 0, 0) == ""
    assert refusal(EVERYTHING & ~(1 << 21), 0, 64990) == ""
