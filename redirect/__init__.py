"""The only code that talks netfilter and routing netlink.

plan       captures -> desired ruleset (pure)
ruleset    tables, chains, rules as values; `render` prints them as nft would
encode     ruleset -> netlink messages (pure), made of `messages`; `decode` the way back, `frames` the framing
compare    desired ruleset against what the kernel holds (pure)
kernel     one atomic batch; exact removal; counters (effects); `watch` for what others change
routing    policy routing for borrowed source addresses (effects)
netlink    the socket (effects); `explain` what it says (pure)
origdst    original destinations, marks, transparent sockets (effects); for workers
namespace  entering network namespaces (effects)
cgroup     paths of cgroup v2 as the kernel's rules want them (effects)
"""

import sys
from importlib.util import find_spec, module_from_spec

# We need pyroute2's message classes. Its package module imports all else it has, an interface database and two ways
# to run an event loop among it: 7 MB in each process, and a quarter of the agent's start. So the package stands in
# without that module's body, and its parts are imported by their full names.
if "pyroute2" not in sys.modules and (_spec := find_spec("pyroute2")):
    sys.modules["pyroute2"] = module_from_spec(_spec)
