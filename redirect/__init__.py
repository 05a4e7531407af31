"""The only code that talks netfilter and routing netlink.

plan      captures -> desired ruleset (pure)
encode    ruleset -> netlink messages (pure)
compare   desired ruleset against what the kernel holds (pure)
kernel    one atomic batch; exact removal (effects)
origdst   original destinations, marks, transparent sockets (effects)
"""
