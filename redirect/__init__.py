"""The only code that talks netfilter and routing netlink.

plan       captures -> desired ruleset (pure)
ruleset    tables, chains, rules as values; `render` prints them as nft would
encode     ruleset -> netlink messages (pure); `decode` the way back, `frames` the framing
compare    desired ruleset against what the kernel holds (pure)
kernel     one atomic batch; exact removal; counters (effects); `watch` for what others change
routing    policy routing for borrowed source addresses (effects)
netlink    the socket (effects); `explain` what it says (pure)
origdst    original destinations, marks, transparent sockets (effects); for workers
namespace  entering network namespaces (effects)
cgroup     paths of cgroup v2 as the kernel's rules want them (effects)
"""
