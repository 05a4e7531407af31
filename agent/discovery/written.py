"""What one file on the node says: documents, as `culvert apply` takes them, of workloads alone."""

from pathlib import Path

from agent.discovery.folders import TooMuch, read_small
from agent.discovery.found import Found
from ca.resources import documents
from ca.resources.documents import DocumentError, Placed
from ca.resources.workload import Workload

MOST_BYTES = 2**20
SHOWN = 5
"""Faults told of one file."""

ERRORS = (OSError, TooMuch, DocumentError, ValueError)


def read(path: Path, node: str) -> tuple[Found, ...]:
    """The workloads in one file, on `node` unless they say otherwise. One of ERRORS."""
    text = read_small(path, MOST_BYTES)
    return tuple(_found(placed, node) for placed in documents.read([(str(path), text)], {"spec.node": node}))


def told(path: Path, error: Exception) -> list[str]:
    """What to say of one of ERRORS."""
    if isinstance(error, DocumentError):
        faults = [str(f) for f in error.faults]
        more = [f"{path}: and {len(faults) - SHOWN} more faults"] if len(faults) > SHOWN else []
        return faults[:SHOWN] + more
    if isinstance(error, OSError):
        return [f"{path}: cannot be read: {error.strerror}"]
    if isinstance(error, UnicodeDecodeError):
        return [f"{path}: is no text in UTF-8: {error.reason} at byte {error.start}"]
    return [str(error) if str(error).startswith(str(path)) else f"{path}: {error}"]


def _found(placed: Placed, node: str) -> Found:
    workload = placed.resource
    if not isinstance(workload, Workload):
        raise ValueError(f"{placed.file}:{placed.line}: {workload.key}: only workloads are found in files; apply it")
    spec = workload.spec
    try:
        if spec.node != node:
            raise ValueError(f"spec.node: this is node {node}, not {spec.node}")
        if spec.match is None:
            raise ValueError("spec.match is missing")
        if spec.found is not None:
            raise ValueError("spec.found is not for people to write; leave it out")
        metadata = workload.metadata
        return Found(
            "files",
            placed.file,
            metadata.namespace,
            metadata.name,
            spec.service_account,
            spec.match,
            spec.ports if "spec.ports" in placed.lines else None,
            metadata.labels,
            spec.address,
            spec,
        )
    except ValueError as error:
        raise ValueError(placed.place(f"{workload.key}: {error}")) from error
