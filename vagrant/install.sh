#!/bin/sh
# Installs Culvert into /opt/culvert and its units and users into the system; every machine runs this.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends python3-venv curl nftables
python3 -m venv /opt/culvert
/opt/culvert/bin/pip install --quiet /src
ln -sf /opt/culvert/bin/culvert /usr/local/bin/culvert
install -m 644 /src/systemd/culvert.sysusers.conf /usr/lib/sysusers.d/culvert.conf
systemd-sysusers
install -m 644 /src/systemd/culvert-*.service /etc/systemd/system/
systemctl daemon-reload
