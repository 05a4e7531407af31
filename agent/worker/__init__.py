"""The worker's side: the process that carries connections. It parses what strangers send, and is trusted with little.

It imports nothing of agent/node/: what it knows, messages told it. What it imports, every worker holds in memory.

worker        all of this put together; forked at first (agent/forking.py), later `python -m agent.worker FD`
privileges    what the process gives up first
listeners     its ends of the listening sockets
outbound, inbound, resolver   connections on their way out, on their way in, and of cgroups that no rule knew yet
admission     who speaks, whom it means, whether it may
rejudge       the same again for what is already carried
budgets       what a workload may take
opaque, proxyheader           what is never taken for HTTP; who calls, told before the first byte
stock         sockets made in other namespaces
"""
