"""What people write: the objects of the mesh, one description each for file, wire, memory and JSON Schema.

metadata   names, labels, keys and selectors
workload   Workload: something on a node that has an identity
node       Node: a machine with an agent
mesh       Mesh: what holds for all
policy     AuthorizationPolicy, PeerAuthentication: who may talk to whom
revocation Revocation: what nobody may accept any more
kinds      the union of them, and its codec
documents  YAML files -> objects, with file, line and field for whatever is wrong
"""
