"""What the kernel refused -> what the operator should know: object, cause, next step. Pure."""

import errno

from redirect.netlink import CaptureError, Refused

CGROUPS = "socket cgroupv2"
_FEATURES = {
    CGROUPS: (
        "workloads cannot be told apart by cgroup on this kernel (it needs nft_socket, cgroup v2 and Linux 5.13); "
        "match them by uid, address or network namespace"
    ),
    "socket mark": "capture needs the kernel's nft_socket: `modprobe nft_socket`",
    "fib daddr": "capture needs the kernel's nft_fib_inet: `modprobe nft_fib_inet`",
    "reject": "capture needs the kernel's nft_reject_inet: `modprobe nft_reject_inet`",
    "redirect": "capture needs the kernel's nft_redir: `modprobe nft_redir`",
    "ct ": "capture needs the kernel's connection tracking: `modprobe nft_ct`",
    "chain ": "capture needs the kernel's nft_chain_nat: `modprobe nft_chain_nat`",
    "table ": "capture needs nf_tables of family inet: `modprobe nf_tables`",
}
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOENT, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT, errno.ENOSYS)


def lacks_cgroups(refused: Refused) -> bool:
    """Whether it was only that this kernel cannot tell cgroups apart, or not at such a depth."""
    return refused.code in (*_UNSUPPORTED, errno.ERANGE) and CGROUPS in refused.about


def explain(refused: Refused) -> CaptureError:
    """The error for the operator."""
    text = f"the kernel refused {refused.about}: {refused.refusal}"
    if refused.code == errno.EPERM:
        cause = "changing capture needs CAP_NET_ADMIN over this network namespace: run as root"
        if not refused.about.startswith("a look"):
            cause += ". While an agent runs, the table is its own: say `culvert capture off`, or end the agent first"
    elif refused.code == errno.ENETDOWN:
        cause = "loopback is down in this network namespace: `ip link set lo up`"
    elif refused.code in (errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM):
        cause = "the transaction is too large for this socket: raise net.core.wmem_max, or run as root"
    elif refused.code in _UNSUPPORTED or lacks_cgroups(refused):
        cause = next((hint for word, hint in _FEATURES.items() if word in refused.about), "")
    else:
        cause = ""
    return CaptureError(refused.code, f"{text}; {cause}" if cause else text)
