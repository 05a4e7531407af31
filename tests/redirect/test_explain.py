import errno

import pytest

from redirect.desired import Capture, Desired, Recognise
from redirect.explain import explain
from redirect.netlink import Refusal, Refused
from redirect.plan import plan
from redirect.render import render_rule


def _explained(code: int, about: str, text: str = "") -> str:
    return str(explain(Refused(Refusal(3, code, text), about)))


def test_object_cause_and_next_step() -> None:
    (out,) = (c for c in plan(Desired((Capture("a/b", Recognise(cgroup=(2, 9)), 15101),))).chains if c.name == "out")
    (rule,) = (r for r in out.rules if "cgroup" in render_rule(r))
    assert _explained(errno.EOPNOTSUPP, f"rule 6 of chain out ({render_rule(rule)})") == (
        "the kernel refused rule 6 of chain out (socket cgroupv2 level 2 vmap @by-cgroup-2): Operation not supported; "
        "workloads cannot be told apart by cgroup on this kernel (it needs nft_socket, cgroup v2 and Linux 5.13); "
        "match them by uid, address or network namespace"
    )


@pytest.mark.parametrize(
    ("about", "module"),
    [
        ("rule 2 of chain from/a/b (tcp dport @local-ports fib daddr type local counter)", "nft_fib_inet"),
        ("rule 1 of chain guard (tcp dport @kept-ports ct status ! dnat reject with tcp reset)", "nft_reject_inet"),
        ("rule 1 of chain inbound (ip daddr . tcp dport @serves4 counter redirect to :15006)", "nft_redir"),
        ("chain out", "nft_chain_nat"),
        ("table culvert", "nf_tables"),
    ],
)
def test_missing_modules_are_named(about: str, module: str) -> None:
    assert f"`modprobe {module}`" in _explained(errno.ENOENT, about)


def test_the_kernels_own_words_are_kept() -> None:
    text = _explained(errno.EINVAL, "chain out", "Chain of type nat is not supported")
    assert text == "the kernel refused chain out: Invalid argument (Chain of type nat is not supported)"
    assert "`ip link set lo up`" in _explained(errno.ENETDOWN, "the IPv4 routing route")
