"""Rules as other owners put them beside ours: a container engine's, ufw's and firewalld's, in their usual shape.

The first two are for iptables-restore, the last for nft. Each lets the tunnel port in, as its operator would have to.
"""

import shutil
import subprocess

import pytest

from redirect.namespace import in_namespace

DOCKER = """
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:DOCKER - [0:0]
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
-A DOCKER ! -i docker0 -p tcp -m tcp --dport 9090 -j DNAT --to-destination 172.17.0.2:80
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:DOCKER - [0:0]
:DOCKER-USER - [0:0]
:DOCKER-ISOLATION - [0:0]
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-ISOLATION
-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -o docker0 -j DOCKER
-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT
-A DOCKER-ISOLATION -i docker0 ! -o docker0 -j RETURN
COMMIT
"""
UFW = """
*filter
:INPUT DROP [0:0]
:FORWARD DROP [0:0]
:OUTPUT ACCEPT [0:0]
:ufw-before-input - [0:0]
:ufw-user-input - [0:0]
-A INPUT -j ufw-before-input
-A ufw-before-input -i lo -j ACCEPT
-A ufw-before-input -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A ufw-before-input -m conntrack --ctstate INVALID -j DROP
-A ufw-before-input -p icmp -m icmp --icmp-type 8 -j ACCEPT
-A ufw-before-input -j ufw-user-input
-A ufw-user-input -p tcp -m tcp --dport 22 -j ACCEPT
-A ufw-user-input -p tcp -m tcp --dport 9090 -j ACCEPT
-A ufw-user-input -p tcp -m tcp --dport 15008 -j ACCEPT
COMMIT
"""
PLAINTEXT = "-A ufw-before-input -p tcp -m tcp --dport 15006 -m conntrack --ctstate DNAT --ctorigdstport 9090 -j ACCEPT"
"""What lets plaintext for port 9090 through to the agent and nothing else: docs/neighbours.md."""
FIREWALLD = """
table inet firewalld {
    chain mangle_PREROUTING { type filter hook prerouting priority mangle + 10; policy accept; }
    chain nat_PREROUTING { type nat hook prerouting priority dstnat + 10; policy accept; jump nat_zone; }
    chain nat_zone { tcp dport 9443 redirect to :443; }
    chain filter_INPUT {
        type filter hook input priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_IN_public
        reject with icmpx admin-prohibited
    }
    chain filter_IN_public { tcp dport 22 accept; tcp dport { 9090, 15008 } accept; }
    chain filter_OUTPUT { type filter hook output priority filter + 10; policy accept; oifname "lo" accept; }
}
"""
OWNERS = {
    "docker-nft": ("iptables-nft", DOCKER),
    "docker-legacy": ("iptables-legacy", DOCKER),
    "ufw-nft": ("iptables-nft", UFW),
    "ufw-legacy": ("iptables-legacy", UFW),
    "firewalld": ("nft", FIREWALLD),
}


def run(netns: str, *words: str, text: str = "") -> str:
    """A command's output, inside the namespace. Skips where the program is not installed."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed: apt-get install iptables nftables")
    done = in_namespace(netns, lambda: subprocess.run(words, input=text, capture_output=True, text=True))
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


def settle(netns: str, owner: str, more: str = "", published: int = 9090) -> None:
    """Put the owner's rules there, with `more` before the end of the first table. A container engine publishes the port
    of a container as that one of the machine's."""
    tool, text = OWNERS[owner]
    if owner.startswith("docker"):
        text = text.replace("--dport 9090", f"--dport {published}")
    if tool == "nft":
        run(netns, "nft", "-f", "-", text=text)
    else:
        run(netns, f"{tool}-restore", text=text.replace("COMMIT", f"{more}\nCOMMIT", 1))


def theirs(netns: str, owner: str) -> str:
    """Their rules as their own tool lists them, counters left out."""
    tool = OWNERS[owner][0]
    if tool == "nft":
        return run(netns, "nft", "list", "table", "inet", "firewalld")
    lines = run(netns, f"{tool}-save").splitlines()
    return "\n".join(line.partition(" [")[0] for line in lines if not line.startswith("#"))
