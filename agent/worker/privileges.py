"""Dropping privileges, for a process that parses what strangers send."""

import ctypes
import os

CAP_NET_RAW = 13
"""Enough for SO_MARK (Linux 5.17 and later) and for IP_TRANSPARENT, and for nothing that changes the node."""

_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 8, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522
_LAST_CAPABILITY = 63


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (("effective", ctypes.c_uint32), ("permitted", ctypes.c_uint32), ("inheritable", ctypes.c_uint32))


def drop(uid: int, gid: int, *capabilities: int) -> None:
    """Become `uid` and `gid` for good, with only these capabilities and no way to more. Raises OSError if that fails.

    With the uid the process already has (a user namespace with a single uid) only capabilities are given up.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"dropping privileges: {name}: {os.strerror(code)}")

    for capability in range(_LAST_CAPABILITY + 1):
        if capability not in capabilities and libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) != 0:
            break  # the first number that this kernel does not know
    if (uid, gid) != (os.getuid(), os.getgid()):
        call("prctl", _PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    words = [sum(1 << (c % 32) for c in capabilities if c // 32 == i) for i in range(2)]
    data = (_Data * 2)(*[_Data(word, word, 0) for word in words])
    call("capset", ctypes.byref(_Header(_CAPABILITY_VERSION_3, 0)), ctypes.byref(data))
    call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
