"""The two ends of a connection as people name them: SRC and DST:PORT."""

import ipaddress

import click

from agent.cli.output import Refused
from agent.snapshot import Snapshot
from ca.hints import did_you_mean
from ca.identity import IdentityError, WorkloadIdentity, parse
from ca.resources.workload import Workload

NOWHERE = "0.0.0.0"
"""Stands for the address of what has none yet; no policy names it."""


def destination_end(view: Snapshot, text: str) -> tuple[Workload | None, str, int]:
    """(workload, address, port) of DST:PORT; no workload where an address is nobody's."""
    place, colon, digits = text.rpartition(":")
    if not colon or not digits.isdecimal() or not 0 < int(digits) < 65536:
        raise click.UsageError(f"DST:PORT is {text!r}: a workload or address and a port, as in shop/db:5432")
    place, port = place.strip("[]"), int(digits)
    for workload in view.workloads.values():
        if workload.title == place:
            return workload, view.address(workload) or NOWHERE, port
    if not _is_address(place):
        titles = [w.title for w in view.workloads.values()]
        raise Refused(f"{place}: there is no such workload{did_you_mean(place, titles)}; see culvert get workloads")
    found = [w for w in view.workloads.values() if view.address(w) == place and port in w.spec.ports]
    if len(found) > 1:
        raise Refused(f"{text}: several workloads are meant, {', '.join(sorted(w.title for w in found))}; name one")
    return (found[0] if found else None), place, port


def source_workload(view: Snapshot, text: str) -> Workload:
    """The workload that SRC names, by name or address."""
    for workload in view.workloads.values():
        if workload.title == text:
            return workload
    found = [w for w in view.workloads.values() if view.address(w) == text]
    if len(found) == 1:
        return found[0]
    if found:
        raise Refused(f"{text}: several workloads are there, {', '.join(sorted(w.title for w in found))}; name one")
    titles = [w.title for w in view.workloads.values()]
    raise Refused(f"{text}: there is no such workload{did_you_mean(text, titles)}; see culvert get workloads")


def source_end(view: Snapshot, text: str) -> tuple[WorkloadIdentity | None, str]:
    """(identity, address) of SRC: a workload, an identity, or an address that proves nothing."""
    if text.startswith("spiffe://"):
        try:
            named = parse(text)
        except IdentityError as error:
            raise Refused(str(error)) from error
        if not isinstance(named, WorkloadIdentity):
            raise Refused(f"{text} is no workload: only workloads talk to workloads")
        return named, NOWHERE
    if _is_address(text):
        return None, text
    workload = source_workload(view, text)
    domain = view.mesh.spec.trust_domain if view.mesh else ""
    identity = workload.identity(domain) if view.enrolled(workload) else None
    return identity, view.address(workload) or NOWHERE


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
