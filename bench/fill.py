"""CREDENTIAL NODE WORKLOADS POLICIES: give the centre so many more workloads, enrolled, on a node that never joins, and
so many policies for the server that is measured, which allow others.

A program of its own, because the centre is reached from inside its network namespace. It calls the centre as
`culvert apply` does, only without the YAML: to read 100,000 documents takes minutes that nobody wants to measure.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import trio

from bench.peers.objects import NAMESPACE
from ca.client import Client
from ca.contract import ApplyRequest
from ca.credential import load
from ca.resources.kinds import encode
from ca.resources.metadata import Metadata, Selector
from ca.resources.policy import AuthorizationPolicy, AuthorizationPolicySpec, From, Rule, Source
from ca.resources.workload import Match, Workload, WorkloadSpec

BATCH = 5_000
"""Objects in one call: some 1.5 MB."""


def fillers(node: str, count: int) -> Iterator[list[Workload]]:
    """Workloads with addresses of their own, batch by batch; up to 2**24 are different."""
    for first in range(0, count, BATCH):
        yield [filler(node, number) for number in range(first, min(first + BATCH, count))]


def filler(node: str, number: int) -> Workload:
    """One of them. A thousand accounts in a hundred namespaces are shared."""
    address = f"11.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    account = f"a{number % 1000}"
    return Workload(
        Metadata(f"w{number}", f"fill-{number % 100}", {"app": account, "mesh": "on"}),
        WorkloadSpec(node, account, address, (80,), Match(address=address)),
    )


def policies(count: int) -> Iterator[list[AuthorizationPolicy]]:
    """Policies of the measured server that name other callers, each its own."""
    for first in range(0, count, BATCH):
        yield [_policy(number) for number in range(first, min(first + BATCH, count))]


def _policy(number: int) -> AuthorizationPolicy:
    source = Source(principals=(f"bench.example/ns/{NAMESPACE}/sa/never-{number}",))
    spec = AuthorizationPolicySpec(selector=Selector({"app": "server"}), rules=(Rule((From(source),)),))
    return AuthorizationPolicy(Metadata(f"never-{number}", NAMESPACE), spec)


async def fill(credential: Path, node: str, workload_count: int, policy_count: int) -> None:
    """Apply them all. ClientError when the centre does not take them."""
    client = Client.of_operator(load(credential))
    for workloads in fillers(node, workload_count):
        await client.apply(ApplyRequest([msgspec.Raw(encode(each)) for each in workloads]))
    for allowing in policies(policy_count):
        await client.apply(ApplyRequest([msgspec.Raw(encode(each)) for each in allowing]))


if __name__ == "__main__":
    trio.run(fill, Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
