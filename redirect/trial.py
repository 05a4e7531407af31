"""Whether this kernel can do what we ask of it: a whole table, put into a network namespace made for the purpose.

Nothing else tells as surely: a module may be missing, a feature switched off, a capability not given. Blocking.
"""

import errno
import fcntl
import os
import socket
import struct

from redirect.desired import Capture, Desired, Marks, Recognise
from redirect.kernel import Kernel
from redirect.namespace import NamespaceError, in_scratch
from redirect.netlink import CaptureError

SET_FLAGS, UP = 0x8914, 0x1
"""SIOCSIFFLAGS and IFF_UP."""
_SERVES = (("192.0.2.1", 80), ("2001:db8::1", 80))
_CAPTURES = (
    Capture("trial/uid", Recognise(uid=1), 15100, _SERVES, shares_address=True),
    Capture("trial/address", Recognise(address="192.0.2.2"), 15101),
    Capture("trial/address6", Recognise(address="2001:db8::2"), 15102),
)
_CGROUP = Capture("trial/cgroup", Recognise(cgroup=(1, 1)), 15103)


def trial(marks: Marks, cgroups: bool = True) -> list[str]:
    """What the kernel refuses of our table, in words; `cgroups` as well. CaptureError or NamespaceError when not even a
    namespace can be made."""
    captures = (*_CAPTURES, _CGROUP) if cgroups else _CAPTURES
    desired = Desired(captures, frozenset(_SERVES), marks=marks, capture_all=True)
    return in_scratch(lambda: _refused(desired))


def owned(marks: Marks) -> bool:
    """Whether a table can be nobody else's to change. CaptureError or NamespaceError when it cannot be tried."""
    return in_scratch(lambda: _owned(Desired(_CAPTURES, marks=marks)))


def _owned(desired: Desired) -> bool:
    _loopback_up()
    kernel = Kernel(own=True)
    try:
        kernel.apply(desired)
        return kernel.owned
    finally:
        kernel.close()


def told(marks: Marks) -> str:
    """Why the kernel cannot be told that the agent is there; empty where it can. NamespaceError."""
    return in_scratch(lambda: _told(marks))


def _told(marks: Marks) -> str:
    try:
        kernel = Kernel()
    except OSError as error:
        return str(error)
    try:
        kernel.appear(marks)
        return ""
    except CaptureError as error:
        return str(error)
    finally:
        kernel.close()


def _refused(desired: Desired) -> list[str]:
    _loopback_up()
    try:
        kernel = Kernel()
    except OSError as error:
        hint = "; `modprobe nf_tables`" if error.errno == errno.EPROTONOSUPPORT else ""
        return [f"the kernel has no netlink for rules: {os.strerror(error.errno or 0)}{hint}"]
    try:
        if lacking := kernel.apply(desired):
            return [lacking]
        return kernel.differences(desired)
    except CaptureError as error:
        return [str(error)]
    finally:
        kernel.close()


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            fcntl.ioctl(sock, SET_FLAGS, struct.pack("16sh22x", b"lo", UP))
        except OSError as error:
            raise NamespaceError(f"loopback cannot be brought up: {error.strerror}") from error
