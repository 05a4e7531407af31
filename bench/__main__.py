"""`python -m bench full|quick|soak|report`: needs root, and the machine to itself."""

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import TypeVar

import click
import msgspec
import trio

from agent.lab.lab import Lab, open_lab
from bench import plans, tables
from bench.machine import BusyError, alone, facts
from bench.peers import Peer
from bench.samples import Record
from bench.schedule import Plan, Schedule
from bench.soak import soak as run_soak

T = TypeVar("T")

RESULTS = Path("bench/results")
DOCUMENT = Path("docs/performance.md")
_DESCRIPTORS = 262_144
"""Enough for 10,000 connections through one process, twice over."""


def say(text: str) -> None:
    """Progress goes to stderr: stdout is for results."""
    print(f"{datetime.now():%T} {text}", file=sys.stderr, flush=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure Culvert beside what people use today."""


@main.command()
@click.option("--peers", default="", help="Only these, separated by commas.")
def quick(peers: str) -> None:
    """Under four minutes against Envoy in HBONE mode; one line of JSON with ratios Culvert / Envoy."""
    record = measure(plans.quick(), only(plans.quick_peers(), peers), "quick")
    disturbed = sum(sample.noise.level > 1.0 for sample in record.samples)
    if disturbed:
        say(f"others used the machine in {disturbed} of {len(record.samples)} measurements: trust these ratios less")
    line = tables.quick_line(record)
    print(line)
    if "null" in line:
        say("null stands for what could not be measured: see FAILED above")
        raise SystemExit(1)


@main.command()
@click.option("--peers", default="", help="Only these, separated by commas; default: all that are installed.")
@click.option("--workers", default="1,2", help="Worker counts, separated by commas.")
@click.option("--rounds", default=5, help="How often everything is started afresh and measured.")
@click.option("--seconds", default=4.0, help="Length of one measurement.")
@click.option("--scale/--no-scale", default=True, help="Also measure beside 10, 1,000 and 100,000 workloads.")
@click.option("--write/--no-write", default=True, help=f"Put the tables into {DOCUMENT}.")
def full(peers: str, workers: str, rounds: int, seconds: float, scale: bool, write: bool) -> None:
    """Everything against everybody; the tables go into the documentation."""
    counts = tuple(int(count) for count in workers.split(","))
    record = measure(plans.full(counts, rounds, seconds), only(plans.peers(), peers), "full")
    sized = measure(plans.scale(rounds, seconds), plans.sized_peers(), "scale") if scale else None
    publish(tables.section(record, sized), write)


@main.command()
@click.argument("main_record", type=click.Path(exists=True, path_type=Path), default=RESULTS / "full.json")
@click.argument("scale_record", type=click.Path(path_type=Path), default=RESULTS / "scale.json")
@click.option("--write/--no-write", default=False, help=f"Put the tables into {DOCUMENT}.")
def report(main_record: Path, scale_record: Path, write: bool) -> None:
    """The tables of runs that were kept."""
    found = [
        msgspec.json.decode(path.read_bytes(), type=Record) if path.exists() else None
        for path in (main_record, scale_record)
    ]
    assert found[0]
    publish(tables.section(found[0], found[1]), write)


@main.command()
@click.option("--seconds", default=600.0, envvar="SOAK_SECONDS", help="How long; also SOAK_SECONDS.")
def soak(seconds: float) -> None:
    """Mixed load with churning connections through Culvert; fails when anything grows that must not."""
    faults = in_lab(lambda lab: run_soak(lab, seconds, say))
    for fault in faults:
        say(f"FAILED {fault}")
    raise SystemExit(bool(faults))


def only(peers: list[Peer], names: str) -> list[Peer]:
    """The named ones; all when nobody is named."""
    wanted = names.split(",") if names else [peer.name for peer in peers]
    if unknown := set(wanted) - {peer.name for peer in peers}:
        raise click.UsageError(f"no such peer: {', '.join(sorted(unknown))}; there are {[p.name for p in peers]}")
    return [peer for peer in peers if peer.name in wanted]


def measure(plan: Plan, wanted: list[Peer], name: str) -> Record:
    """Carry a plan out; what came out is kept in a file, also while it runs."""
    record = Record(facts(), f"{datetime.now():%Y-%m-%d %H:%M}")
    present = plans.present(wanted, record)
    for peer, why in record.skipped.items():
        say(f"skipped {peer}: {why}")
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        path.write_bytes(plans.keep(record))

    in_lab(lambda lab: Schedule(plan, present, lab, record, say, keep).run())
    keep()
    return record


def publish(section: str, write: bool) -> None:
    """Print the tables, or put them where they are read."""
    if write:
        DOCUMENT.write_text(tables.document(DOCUMENT.read_text(), section))
        say(f"written to {DOCUMENT}")
    else:
        print(section)


def in_lab(work: Callable[[Lab], Awaitable[T]]) -> T:
    """Run `work` in a lab that is gone afterwards, whatever happens; with the machine's lock held."""
    if os.geteuid():
        raise click.ClickException("namespaces, cgroups and capture need root: sudo make bench")
    _, ours = resource.getrlimit(resource.RLIMIT_NOFILE)
    for most in (max(ours, _DESCRIPTORS), ours):  # a container's root may not raise it
        with contextlib.suppress(ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            break
    try:
        with alone():
            return trio.run(_session, work)
    except BusyError as error:
        raise click.ClickException(str(error)) from error


async def _session(work: Callable[[Lab], Awaitable[T]]) -> T:
    results: list[T] = []
    async with open_lab() as lab, trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal, nursery.cancel_scope)
        results.append(await work(lab))
        nursery.cancel_scope.cancel()
    if not results:
        raise click.Abort
    return results[0]


async def _end_on_signal(scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as received:
        async for _ in received:
            scope.cancel()


if __name__ == "__main__":
    main()
