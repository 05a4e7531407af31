"""The supervisor's side: what knows the mesh, holds the keys, owns the listening sockets and changes the kernel.

It reads nothing that a stranger wrote, imports nothing of agent/worker/, and speaks with workers in messages only.

supervisor                    all of this put together, from start to end
centre, view, viewlog         the session with the centre; whole views of the mesh out of it, also from disk
join, renewal, issuance,      certificates: the first, the next, those near their end; keys that only this machine can
expiry, seal                  read
state, files                  what is on disk
enrolment, activation         what a view means for this node; the one task that makes it so
capture, namespace, base,     tables and sockets, in all namespaces, and what is in them besides enrolment
exempt, cgroups
boot                          tables out of the disk, before there is an agent
switch, orders                capture off, on, on trial; drain, leave
workers, child                the other processes: all, and one
admin, topics                 the admin socket, and what is answered there
timekeeping, unattended,      what is watched: clocks, what passed without an agent, what the mesh does not carry,
unmeshed, earlier, cutting    connections from before enrolment
notices                       what is told in the log unasked
"""
