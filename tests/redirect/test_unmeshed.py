"""What is not TCP: counted for whose it is, dropped where that is said, and never more than that."""

import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from redirect.counts import Counts
from redirect.desired import Capture, Desired, Recognise, Rest, Skip
from redirect.kernel import Kernel
from redirect.namespace import in_namespace
from tests.redirect.conftest import Wire
from tests.redirect.traffic import Server, as_user, family, located, nft, reached

FAR = ["10.77.0.9", "fd77::9"]
WEB = Capture("shop/web", Recognise(uid=1001), 15101)
WAYS = [Recognise(uid=1001), Recognise(everything=True)]
SCTP = getattr(socket, "IPPROTO_SCTP", 132)


def sent(netns: str, address: str, port: int, uid: int = 1001, times: int = 1, protocol: int = 0) -> bool:
    """Whether datagrams could be sent; False when the kernel dropped them on the spot."""

    def send() -> bool:
        as_user(uid)
        kind = socket.SOCK_RAW if protocol else socket.SOCK_DGRAM
        with socket.socket(family(address), kind, protocol) as sock:
            try:
                for _ in range(times):
                    sock.sendto(b"datagram", (address, port))
            except PermissionError:
                return False
            except ConnectionRefusedError:
                pass  # it arrived, and nobody was there
            return True

    return in_namespace(netns, send)


def echoed(netns: str, address: str, request: bytes, protocol: int) -> list[int]:
    """The types of the ICMP messages that come back, up to an answer."""
    answers = []

    def ask() -> None:
        with socket.socket(family(address), socket.SOCK_RAW, protocol) as sock:
            sock.settimeout(3)
            sock.sendto(request, (address, 0))
            while not answers or answers[-1] not in (0, 129):
                message = sock.recv(2000)
                answers.append(message[0 if ":" in address else 20])

    in_namespace(netns, ask)
    return answers


def counts(kernel: Kernel) -> tuple[int, int, int]:
    found = kernel.counters().workloads["shop/web"]
    return found.unmeshed, found.dns, found.blocked


@pytest.mark.parametrize("address", [*FAR, "127.0.0.1", "::1"])
@pytest.mark.parametrize("recognise", WAYS)
def test_counted_and_let_go(wire: Wire, kernel: Kernel, recognise: Recognise, address: str) -> None:
    kernel.apply(Desired((replace(WEB, recognise=recognise),)))
    assert sent(wire.node, address, 8125, times=3)
    assert sent(wire.node, address, 53, times=2)
    assert counts(kernel) == (3, 2, 0)
    sent(wire.node, address, 8125, uid=4711)
    assert counts(kernel) == ((4 if recognise.everything else 3), 2, 0)


@pytest.mark.parametrize("address", FAR)
def test_blocked_but_for_names(wire: Wire, kernel: Kernel, address: str) -> None:
    kernel.apply(Desired((replace(WEB, rest=Rest.BLOCK),)))
    assert not sent(wire.node, address, 8125)
    assert sent(wire.node, address, 53)
    assert counts(kernel) == (0, 1, 1)
    assert sent(wire.node, address, 8125, uid=4711)  # whose business it is not
    assert counts(kernel) == (0, 1, 1)
    kernel.apply(Desired((replace(WEB, rest=Rest.BLOCK_ALL),)))
    assert not sent(wire.node, address, 53)
    assert counts(kernel) == (0, 0, 2)  # what is counted no more begins anew some day, the rest goes on
    kernel.apply(Desired((WEB,)))
    assert sent(wire.node, address, 8125)
    assert counts(kernel) == (1, 0, 0)


ENGINE = """
table ip engine {
    chain output {
        type nat hook output priority -100
        ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:33501
    }
    chain back {
        type nat hook postrouting priority 100
        ip saddr 127.0.0.11 udp sport 33501 snat to 127.0.0.11:53
    }
}
"""
"""What a container engine has in each container's namespace, for its own resolver."""


@pytest.mark.parametrize(("address", "port"), [("127.0.0.11", 33501), ("127.0.0.1", 53), ("::1", 53)])
def test_a_resolver_in_its_own_namespace_is_asked_and_answers(
    wire: Wire, kernel: Kernel, address: str, port: int
) -> None:
    """The engine's cannot be told by its port: the question was sent to another."""
    nft(wire.node, ENGINE)
    kernel.apply(Desired((replace(WEB, recognise=Recognise(everything=True), rest=Rest.BLOCK),)))

    def ask() -> bytes:
        with (
            socket.socket(family(address), socket.SOCK_DGRAM) as resolver,
            socket.socket(family(address), socket.SOCK_DGRAM) as program,
        ):
            resolver.bind((address, port))
            resolver.settimeout(3)
            program.settimeout(3)
            program.sendto(b"who is web?", (address, 53))
            question, whose = resolver.recvfrom(100)
            resolver.sendto(question + b" 10.77.0.9", whose)
            with pytest.raises(PermissionError):
                resolver.sendto(b"something else", (address, 8125))
            answer, resolver_address = program.recvfrom(100)
            assert resolver_address[:2] == (address, 53)
            return answer

    assert in_namespace(wire.node, ask) == b"who is web? 10.77.0.9"
    assert counts(kernel) == (0, 2, 1)


def test_other_protocols_too(wire: Wire, kernel: Kernel) -> None:
    kernel.apply(Desired((replace(WEB, recognise=Recognise(everything=True)),)))
    for protocol in (SCTP, 47, 50):
        assert sent(wire.node, FAR[0], 0, protocol=protocol)
    assert counts(kernel) == (3, 0, 0)
    kernel.apply(Desired((replace(WEB, recognise=Recognise(everything=True), rest=Rest.BLOCK),)))
    for protocol in (SCTP, 47, 50):
        assert not sent(wire.node, FAR[0], 0, protocol=protocol)
    assert counts(kernel) == (0, 0, 3)


def test_what_the_network_needs_is_nobodys_and_always_works(wire: Wire, kernel: Kernel) -> None:
    kernel.apply(Desired((replace(WEB, recognise=Recognise(everything=True), rest=Rest.BLOCK_ALL),)))
    assert echoed(wire.node, FAR[0], bytes.fromhex("0800f7ff00000000"), socket.IPPROTO_ICMP)[-1] == 0
    assert echoed(wire.node, FAR[1], bytes.fromhex("8000000000000000"), socket.IPPROTO_ICMPV6)[-1] == 129
    with Server(wire.far, "far", "0.0.0.0", 80):
        assert reached(wire.node, FAR[0], 80) == "far"
    assert counts(kernel) == (0, 0, 0)


@pytest.mark.parametrize("address", FAR)
def test_what_is_skipped_is_not_blocked(wire: Wire, kernel: Kernel, address: str) -> None:
    blocked = replace(WEB, rest=Rest.BLOCK_ALL)
    for skip in (Skip(ports=(8125,)), Skip(networks=("10.77.0.9/32", "fd77::/64")), Skip(uids=(1001,))):
        kernel.apply(Desired((replace(blocked, skip=skip),)))
        assert sent(wire.node, address, 8125)
    kernel.apply(Desired((replace(blocked, skip=Skip((8126,), ("10.78.0.0/16", "fd78::/64"), (1002,))),)))
    assert not sent(wire.node, address, 8125)
    assert counts(kernel) == (3, 0, 1)


def test_by_cgroup(wire: Wire, kernel: Kernel, cgroup: str) -> None:
    kernel.apply(Desired((replace(WEB, recognise=Recognise(cgroup=located(cgroup)), rest=Rest.BLOCK),)))
    program = (
        "import os, socket, sys\n"
        "open(sys.argv[1] + '/cgroup.procs', 'w').write(str(os.getpid()))\n"
        "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('10.77.0.9', 8125))\n"
    )
    command = [sys.executable, "-S", "-E", "-c", program, cgroup]
    done = in_namespace(wire.node, lambda: subprocess.run(command, capture_output=True, text=True))
    assert "PermissionError" in done.stderr
    assert counts(kernel) == (0, 0, 1)


def test_a_trial_blocks_nothing(wire: Wire, kernel: Kernel) -> None:
    """It would go on blocking when its time is over."""
    kernel.apply(Desired((replace(WEB, rest=Rest.BLOCK_ALL),), until=1e9))
    assert sent(wire.node, FAR[0], 8125)
    assert kernel.counters().workloads["shop/web"] == Counts(unmeshed=1)


def test_the_listing_reads_well(netns: str, kernel: Kernel) -> None:
    kernel.apply(Desired((replace(WEB, rest=Rest.BLOCK, skip=Skip((8125,))),)))
    listing = " ".join(nft(netns, "list", "table", "inet", "culvert").split())
    for text in (
        "chain unmeshed { type filter hook output priority filter; policy accept; "
        "tcp flags != syn / fin,syn,rst,ack accept meta l4proto icmp accept",
        "meta skuid vmap @unmeshed-by-uid",
        'meta l4proto tcp accept udp dport @skip/shop/web counter packets 0 bytes 0 accept comment "unmeshed" '
        'udp dport 53 counter packets 0 bytes 0 accept comment "dns" '
        "meta l4proto udp ct direction original ct original proto-dst 53 counter packets 0 bytes 0 accept comment "
        '"dns" meta l4proto udp ct direction reply ct original proto-dst 53 oif "lo" counter packets 0 bytes 0 accept '
        'comment "dns" counter packets 0 bytes 0 drop comment "blocked" }',
    ):
        assert text in listing, listing
