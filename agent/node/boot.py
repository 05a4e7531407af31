"""The time between a boot and the agent: the table that the disk remembers, put into the kernel. Blocking.

Whatever a table follows is on disk before it (decision 15), so nothing is kept for this but what the agent itself
starts with. Only those who were captured before are: nobody is enrolled here. Ids of cgroups are of this boot, and
units that have not started yet have none: their first connections are an unknown cgroup's, and refused like those of
anybody captured while nobody answers.
"""

from dataclasses import dataclass, replace

from agent.discovery.tenants import Tenants
from agent.node.base import base
from agent.node.cgroups import Cgroups
from agent.node.enrolment import HOST, admitted, enrol, tables
from agent.node.exempt import Exemptions
from agent.node.holding import hold
from agent.node.namespace import UNTOLD, standing, title
from agent.node.state import State
from agent.settings import AgentSettings, worker_account
from redirect.desired import Desired
from redirect.kernel import Kernel
from redirect.namespace import NamespaceError
from redirect.netlink import CaptureError


@dataclass(frozen=True, slots=True)
class Remembered:
    """The table of each place, or `nothing`: why there is none."""

    tables: dict[str, Desired]
    nothing: str = ""


def remembered(settings: AgentSettings) -> Remembered:
    """What the disk says. StateError or AccountError."""
    state = State(settings.state_dir)
    member = state.membership()
    if member is None:
        return Remembered({}, "this machine has not joined a mesh")
    if state.capture_off():
        return Remembered({}, "capture is switched off (`culvert capture on`)")
    view, ports = state.views.load(member.node), state.ports()
    wanted = admitted(enrol(view), ports, ()) if view else ()
    if view is None or not wanted:
        return Remembered({}, "nobody was captured on this machine")
    cgroups = Cgroups()
    try:
        located, _ = cgroups.locate([w.cgroup for w in wanted if w.cgroup])
        parents = cgroups.parents(located)
    finally:
        cgroups.close()
    exempt = Exemptions(settings.centre or member.centre, settings.login_ports).expected()
    shared = replace(base(settings, worker_account(settings.worker_user)[0]), spared=exempt.pairs)
    # No container runs yet: whoever comes from behind one of their bridges waits for the agent.
    held = hold(wanted, ports.bridges, Tenants(), ())
    found = tables(view, wanted, ports, located, shared, parents, held)
    return Remembered({p: d if p else replace(d, login_ports=exempt.ports) for p, d in found.items()})


def lay(wanted: dict[str, Desired]) -> tuple[list[str], list[str]]:
    """Put the tables into the kernel. Returns the workloads that are held now, and a sentence for each place where that
    failed; one whose namespace does not exist yet is none: nothing can run in it."""
    held, problems = [], []
    for place, desired in wanted.items():
        if place != HOST and standing(place) is None:
            continue
        try:
            kernel = Kernel(place or None, own=True)
            try:
                if lacking := kernel.apply(_as_told(kernel, desired)):
                    problems.append(f"{title(place)}: {UNTOLD}: {lacking}")
            finally:
                kernel.close()
            held += [capture.workload for capture in desired.captures]
        except (CaptureError, NamespaceError, OSError, ValueError) as error:
            problems.append(f"{title(place)}: {error}")
    return held, problems


def _as_told(kernel: Kernel, desired: Desired) -> Desired:
    """The table as the agent would make it there: if the kernel cannot be told that it is there, as we try for a
    moment, nothing fails open."""
    if desired.asks:
        try:
            kernel.appear(desired.marks)
            kernel.vanish()
        except CaptureError:
            return desired.untold
    return desired
