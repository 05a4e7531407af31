from datetime import UTC, datetime, timedelta

from prometheus_client.parser import text_string_to_metric_families

from ca.lifetimes import Lifetime, overview
from ca.metrics import Facts, exposition

NOW = datetime(2030, 5, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def test_what_is_told() -> None:
    all_ = [
        Lifetime("root", "ab", NOW + 3000 * DAY, 3650 * DAY),
        Lifetime("issuing", "cd", NOW + 200 * DAY, 365 * DAY),
        Lifetime("node", "one", NOW + DAY, 7 * DAY),
        Lifetime("node", "two", NOW + 5 * DAY, 7 * DAY),
    ]
    text = exposition(Facts(overview(all_, NOW), 7, 2, 1, 3, 4)).decode()
    told = {
        (s.name, *sorted(s.labels.values())): s.value for f in text_string_to_metric_families(text) for s in f.samples
    }
    assert told[("culvert_ca_signing_expiry_timestamp_seconds", "cd", "issuing")] == (NOW + 200 * DAY).timestamp()
    assert told[("culvert_ca_first_expiry_timestamp_seconds", "node")] == (NOW + DAY).timestamp()
    assert told[("culvert_ca_certificates", "late", "node")] == 1
    assert told[("culvert_ca_certificates", "good", "node")] == 1
    assert told[("culvert_ca_certificates", "ended", "root")] == 0
    assert told[("culvert_ca_surveyed_timestamp_seconds",)] == NOW.timestamp()
    names = ("revision", "nodes", "nodes_connected", "workloads", "revocations")
    assert [told[(f"culvert_centre_{n}",)] for n in names] == [7, 2, 1, 3, 4]
