"""Culvert beside what people use today, on one machine: `python -m bench full|quick|soak`.

    node A 10.90.0.1                                      node B 10.90.0.2
    client -> 127.0.0.1:18080 [proxy] ==mTLS==> [proxy] -> 127.0.0.1:8080 nginx, :5201 iperf3
    client -> 10.90.0.2:8080 [captured by the agent] ==HBONE==> [agent] -> the same two servers

rig        two nodes on one wire and the servers of one peer
account    CPU, memory and descriptors of a group of processes
meter      what a measurement cost, and how disturbed the machine was
output     what wrk, ab and iperf3 print -> numbers (pure)
measures   one measurement each: name, load, numbers
peers/     direct, the proxies, Culvert
programs/  the load generators that are ours; they run on any Python
schedule   rounds: which peer is measured with what, when, and how often again
samples    what came out, kept as JSON (values)
judging    samples -> medians, spread, ratios (pure)
tables     -> the results section of docs/performance.md, and the line of `quick` (pure)
soak       mixed load for long, and what must not grow

Every peer has a rig of its own, so that peers stay up side by side and a measurement of one follows at once on that of
the other: what slows the machine for a while slows both. Only memory is measured with one peer alone, since two
programs that share a file's pages would each seem smaller.
"""
