"""The centre, and the trust it hands out.

identity    who somebody is: a SPIFFE URI of one of four classes
resources   what people write: Workload, Node, Mesh
contract    what a node and the centre say to each other
x509, tls   certificates, and TLS as a machine on memory buffers
channel     that machine on a socket; http: h11 on a channel
tokens      what invites a node
authority   who may hold which certificate
registry    desired state and its revisions; claims: what only one may have; store: where they rest
head        the latest of them, and how it becomes a later one
feed        its changes as deltas that all watchers share; sessions: the watchers
centre      every call as a method; api: who may make which; server: the tasks that serve them
central     the centre's settings; founding: how a mesh begins
keeper      what the centre does for its certificates by itself; lifetimes, inventory, trust: what ends when
recovery    nodes that come back after their certificate's end; possession: how they prove themselves
metrics     what Prometheus is told; pages: where
client      the other end: what agents and operators call it with
"""
