"""A mesh in a box: machines, wires and processes on this one machine, for the demo and for the tests.

world      private namespaces to run a whole lab in, as root or as an ordinary user
namespace  one network namespace, and code or sockets inside it
topology   machines on one wire, and workloads with a namespace of their own
place      where a program runs: network namespace, uid, cgroup
process    a program that runs there, and its end
lab        owns all of the above; nothing of it survives the `async with`
leaks      packets -> payload bytes seen in clear (pure)
sniffer    the wire's packets -> `leaks`
programs   real programs that know nothing of a mesh
mesh       a centre and agents as real processes, driven by the command line
orphans    what a killed lab left behind, and its removal
demo       what `culvert demo` shows; with demo_scene (who takes part), demo_look (what it reads back), demo_voice

Nothing here is part of the data path, and no other package imports it but the command line.
"""
