"""What works on a machine whose agent does not run: taking capture away must not depend on it."""

from agent.cli.output import Refused
from agent.node.enrolment import HOST
from agent.node.files import StateError
from agent.node.namespace import remove_table, standing, title
from agent.node.state import State
from agent.settings import AccountError, AgentSettings
from redirect.namespace import NamespaceError
from redirect.netlink import CaptureError


def remove_capture(settings: AgentSettings, state: State) -> None:
    """Remove our table from this machine and from every namespace that we know to have one. Refused."""
    failures = []
    for place in (HOST, *sorted(set(state.ports().namespaces.values()))):
        if standing(place) is not None:
            try:
                remove_table(place, settings.packet_marks)
            except (CaptureError, NamespaceError, OSError) as error:
                failures.append(f"{title(place)}: {error}")
    if failures:
        raise Refused("; ".join(failures))


def switch_offline(settings: AgentSettings, *, off: bool) -> str:
    """The operator's switch, for the next start; off also removes what is in the kernel now. Refused."""
    try:
        state = State(settings.state_dir)
        state.set_capture_off(off)
        if off:
            remove_capture(settings, state)
    except StateError as error:
        raise Refused(str(error)) from error
    return (
        "capture is off and stays off when the agent starts; switch it on with `culvert capture on`"
        if off
        else "capture will be on when the agent starts; it does not run now"
    )


def guard_offline(settings: AgentSettings) -> str:
    """Put the rules that the disk remembers into the kernel. Refused."""
    from agent.node.boot import lay, remembered

    try:
        found = remembered(settings)
    except (StateError, AccountError) as error:
        raise Refused(str(error)) from error
    held, problems = lay(found.tables)
    if problems:
        raise Refused("; ".join(problems))
    if not held:
        return f"nothing to hold: {found.nothing or 'every captured workload lives in a namespace to come'}"
    return f"{len(held)} workloads are held until the agent answers: {', '.join(sorted(held))}"


def leave_offline(settings: AgentSettings) -> str:
    """Leave the mesh. Refused."""
    try:
        state = State(settings.state_dir)
        member = state.membership()
        remove_capture(settings, state)
        state.forget_all()
    except StateError as error:
        raise Refused(str(error)) from error
    if member is None:
        return "this machine was in no mesh; nothing of Culvert's is left in the kernel or on disk"
    return (
        f"{member.node} has left {member.trust_domain}: nothing is captured any more, keys and certificates are "
        f"deleted. The centre still lists it: culvert delete node {member.node}"
    )
