"""Discovery: a node finds its workloads by what is written on them, and has them registered.

found         one workload as a source found it, and all that a source sees; what a source is
files         documents in a directory; written: one of them
units         systemd units with a section [X-Culvert]
sections      that section; names and cgroups of units
dbus          questions to systemd
containers    containers with labels culvert.io/...
docker        the Docker API
users         users of the machine
folders       changes in directories (inotify)
listening     ports that nobody declared
merge         what all sources see -> what the node reports; conflicts
registration  the report, kept true at the centre
discovery     the tasks

A source that fails keeps what it last saw and is started again; it never takes the agent down.
"""
