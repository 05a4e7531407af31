"""The classes of nf_tables messages, as `nft`: those of pyroute2, without its sockets.

Beside the messages it defines sockets of its own that build on asyncio: 2 MB that nobody here uses. So these stand on
nothing. Whoever imports pyroute2's sockets by themselves gets them whole.
"""

import sys
from types import ModuleType

_SOCKETS = "pyroute2.netlink.nlsocket"

if _SOCKETS in sys.modules:
    from pyroute2.netlink.nfnetlink import nftsocket as nft
else:
    _nothing = ModuleType(_SOCKETS)
    _nothing.__dict__.update(NetlinkSocket=object, AsyncNetlinkSocket=object)
    sys.modules[_SOCKETS] = _nothing
    try:
        from pyroute2.netlink.nfnetlink import nftsocket as nft
    finally:
        del sys.modules[_SOCKETS]

__all__ = ["nft"]
