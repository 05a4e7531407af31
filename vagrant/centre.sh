#!/bin/sh
# Founds the mesh on this machine and prints how the nodes join: centre.sh ADDRESS NODE...
set -eu
address=$1; shift
if [ ! -e /var/lib/culvert/central ]; then
    culvert central init --trust-domain shop.example --listen "$address:15012"
    chown -R culvert-central:culvert-central /var/lib/culvert/central
fi
systemctl enable --now culvert-central
for node in "$@"; do
    token=$(culvert central token create --node "$node" --ttl 1h)
    echo "vagrant ssh $node -c 'sudo culvert agent join $token && sudo systemctl enable culvert-guard && sudo systemctl enable --now culvert-agent'"
done
