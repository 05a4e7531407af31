"""The agent: one per node.

snapshot, route, authorize   decisions over facts (pure)
tunnel, relay                the byte path: HTTP/2 CONNECT over mTLS, and the byte mover
outbound, inbound            captured connections; arriving tunnels
supervisor, worker           the two kinds of process; messages: what they say to each other
cli                          the command `culvert`
"""
