"""What Prometheus is told by a centre: above all what ends when. Pure; prometheus_client is imported for the first
scrape only."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ca.lifetimes import Overview, Standing

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric


@dataclass(frozen=True, slots=True)
class Facts:
    """What a scrape shows. `overview` is some minutes old at most."""

    overview: Overview
    revision: int = 0
    nodes: int = 0
    connected: int = 0
    workloads: int = 0
    revocations: int = 0


def exposition(facts: Facts) -> bytes:
    """The page that Prometheus reads, in its text format."""
    from prometheus_client import generate_latest
    from prometheus_client.registry import Collector

    class Page(Collector):
        def collect(self) -> Iterable["Metric"]:
            return [*_trust(facts.overview), *_own(facts)]

    return generate_latest(Page())


def _trust(overview: Overview) -> Iterable["Metric"]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    signing = GaugeMetricFamily(
        "culvert_ca_signing_expiry_timestamp_seconds",
        "When a root or issuing certificate ends, unix time.",
        labels=["what", "which"],
    )
    for it in overview.signing:
        signing.add_metric([it.what, it.title], it.ends.timestamp())
    yield signing
    first = GaugeMetricFamily(
        "culvert_ca_first_expiry_timestamp_seconds",
        "When the first certificate of a kind ends that somebody needs, unix time.",
        labels=["what"],
    )
    for what, it in sorted(overview.first.items()):
        first.add_metric([what], it.ends.timestamp())
    yield first
    counts = GaugeMetricFamily(
        "culvert_ca_certificates",
        "Certificates that somebody needs; late: it should have been renewed by now.",
        labels=["what", "state"],
    )
    for what in sorted(overview.first):
        for standing in Standing:
            counts.add_metric([what, standing.value], overview.counts[what, standing])
    yield counts
    yield GaugeMetricFamily(
        "culvert_ca_surveyed_timestamp_seconds",
        "When the certificates were looked at, unix time.",
        value=overview.time.timestamp(),
    )


def _own(facts: Facts) -> Iterable["Metric"]:
    from prometheus_client.metrics_core import GaugeMetricFamily

    for name, text, value in (
        ("culvert_centre_revision", "The registry's revision.", facts.revision),
        ("culvert_centre_nodes", "Nodes of the mesh.", facts.nodes),
        ("culvert_centre_nodes_connected", "Nodes with a session.", facts.connected),
        ("culvert_centre_workloads", "Workloads of the mesh.", facts.workloads),
        ("culvert_centre_revocations", "Revocations in force.", facts.revocations),
    ):
        yield GaugeMetricFamily(name, text, value=value)
