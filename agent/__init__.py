"""The agent: one per node. Here is what both its sides share; the floors are in ARCHITECTURE.md.

node          the supervisor's side; checks, discovery and telemetry are under it
worker        the side that carries connections; tunnel and relay are under it
snapshot      the mesh as a node sees it; leaf: a certificate; connections, tally: what is carried, and what that takes
route, policy, authorize, openings   decisions over facts (pure); explain: the same, told to an operator
book          the worker's connections, for all who carry them
messages, channel                    what supervisor and worker say to each other; forking: how the first ones start
lean, docstrings                     imports without what nobody uses or reads
settings, answers                    what an operator sets, and is told
clock, owners                        time as the centre has it; whose a socket is
cli, lab      the command `culvert`; machines to try it on
"""
