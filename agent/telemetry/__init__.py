"""What a node tells about itself.

sink        lines to a file by a thread of its own: a blocked disk blocks nothing else
access_log  one line for each closed connection
ledger      what workers report: recent connections, counted and logged
metrics     the standard Istio TCP counters and our own gauges, for Prometheus
"""
