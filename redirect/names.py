"""How the parts of our table are called."""

from redirect.ruleset import Key

TABLE = "culvert"
"""The one table we own, family inet; without an agent, `nft delete table inet culvert` removes capture."""

OUT, PRE, INBOUND, GUARD, BORROW, UNKNOWN = "out", "pre", "inbound", "guard", "borrow", "unknown"
KEPT, BORROWED = "kept", "borrowed"
"""Where the guard and the borrowing chain lead what concerns them."""
HOLD, NEWCOMER, OPEN_NEWCOMER, STRAY = "hold", "newcomer", "open-newcomer", "stray"
"""The chain that sees what comes from behind bridges and from namespaces, where that leads which is held, always or
while the agent is there, and what is refused."""
THROUGH, LOCALLY = "through", "locally"
"""The chains that see what goes to other namespaces, from elsewhere and from here."""
SHELTER, LOBBY = "shelter", "lobby"
"""Where they lead while the agent is away, and while it is there."""
PASSED_UNITS, PASSED_CONTAINERS = "passed-units", "passed-containers"
"""The chains that count what passes while the agent is away and is no single workload's: of new cgroups, and out of
network namespaces without a table."""
WAITS = "waits for a table of its own"
"""Comment of the rules of the newcomers' chains that drop; all others there, and the stray's, reset."""
BRIDGES, OPEN_BRIDGES = "bridges", "open-bridges"
VOUCHED = {Key.STATION4: "vouched4", Key.STATION6: "vouched6"}
SETTLED = {Key.STATION4: "settled4", Key.STATION6: "settled6"}
ATTENDED = {Key.STATION4: "attended4", Key.STATION6: "attended6"}
INSIDE = {Key.ADDRESS4: "inside4", Key.ADDRESS6: "inside6"}
OPEN_INSIDE = {Key.ADDRESS4: "open-inside4", Key.ADDRESS6: "open-inside6"}
PRESENCE = "culvert-presence"
"""The table that stands while the agent does; nobody but the kernel or the agent can remove it."""
TRIAL = "trial"
"""The set whose one element goes by itself when a trial ends."""
FROM = "from/"
"""Chains of workloads are called from/NAMESPACE/NAME."""
INTO = "into/"
"""Chains of workloads for some of whose arriving plaintext there is an opening: into/NAMESPACE/NAME."""
CAPTURED, BYPASSED, SKIPPED, PASSED = "captured", "bypassed", "skipped", "passed"
"""Comments of the rules whose counters are connections captured and let through; skipped: because a setting says so;
passed: because the agent was away."""

UNMESHED, UNMESHED_OF = "unmeshed", "unmeshed/"
"""The chain that sees what is not TCP, and each SYN; and what the names of workloads' own begin with:
unmeshed/NAMESPACE/NAME."""
DNS, BLOCKED = "dns", "blocked"
"""Comments of the rules there whose counters are packets; UNMESHED is one as well."""

MESH = {Key.ENDPOINT4: "mesh4", Key.ENDPOINT6: "mesh6"}
SERVES = {Key.ENDPOINT4: "serves4", Key.ENDPOINT6: "serves6"}
SPARED = {Key.ENDPOINT4: "spared4", Key.ENDPOINT6: "spared6"}
BY_ADDRESS = {Key.ADDRESS4: "by-address4", Key.ADDRESS6: "by-address6"}


def guarded(level: int) -> str:
    """The set of the parents at a level."""
    return f"guarded-{level}"


def known(level: int) -> str:
    """The set of cgroups at a level that are no workload's."""
    return f"known-{level}"
