"""Clock, certificates, centre."""

import pytest

from agent.checks import Finding, clocks

OWN, WEB = "spiffe://shop.example/node/web-1", "spiffe://shop.example/ns/shop/sa/web"
NOW = 1_000_000.0
DAY = 86400.0


@pytest.mark.parametrize(
    ("finding", "state", "word"),
    [
        (clocks.clock(True, "", ""), "ok", "synchronised"),
        (clocks.clock(True, "0.1 s ahead of the centre's", ""), "ok", "synchronised; 0.1 s ahead"),
        (clocks.clock(False, "", ""), "warn", "nobody"),
        (clocks.clock(None, "", ""), "unknown", "sandbox"),
        (clocks.clock(None, "0.1 s ahead of the centre's", ""), "ok", "0.1 s ahead"),
        (clocks.clock(True, "2 h behind the centre's", "2 h behind, too far"), "fail", "too far"),
        (clocks.membership("web-1", "shop.example"), "ok", "web-1 of shop.example"),
        (clocks.membership("", ""), "warn", "joined none"),
        (clocks.centre("10.0.0.1:15012", ""), "ok", "answers"),
        (clocks.centre("10.0.0.1:15012", "no route"), "warn", "no route"),
        (clocks.centre("", ""), "unknown", "nobody said"),
        (clocks.account("", "culvert"), "ok", "culvert"),
        (clocks.account("no such user; make it", "culvert"), "fail", "no such user"),
        (clocks.certificates({}, OWN, NOW), "ok", "none yet"),
        (clocks.certificates({OWN: (NOW - 1, NOW + DAY)}, OWN, NOW), "ok", "ends in 24.0 h"),
        (clocks.certificates({OWN: (NOW + DAY, NOW + 2 * DAY)}, OWN, NOW), "fail", "valid in 24.0 h only"),
        (clocks.certificates({OWN: (0, NOW - DAY)}, OWN, NOW), "fail", "the node's own certificate ended 24.0 h"),
        (clocks.certificates({OWN: (0, NOW + DAY), WEB: (0, NOW - DAY)}, OWN, NOW), "fail", f"{WEB} ended"),
    ],
)
def test_each_state_is_told(finding: Finding, state: str, word: str) -> None:
    assert finding.state == state
    assert word in finding.text
    assert finding.remedy or state in ("ok", "unknown")
