"""The agent: one per node.

node                         the supervisor's side
worker, inbound, outbound    the worker: the process that carries connections, as they arrive and as they leave
tunnel, relay                the byte path: HTTP/2 CONNECT over mTLS, and the byte mover
snapshot, route, authorize   decisions over facts (pure)
messages, channel            what both sides say to each other
cli                          the command `culvert`
"""
