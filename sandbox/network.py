"""The network of a sandbox: loopback comes up by one ioctl.

User-mode networks for fixed-output builds will live here, too; pyroute2 is imported only then.
"""

from __future__ import annotations

import fcntl
import socket
import struct

SIOCSIFFLAGS = 0x8914
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
# What the call is made with: struct ifreq.
LOOPBACK_UP = struct.pack("16sh22x", b"lo", _IFF_UP | _IFF_RUNNING)


def bring_loopback_up() -> None:
    """Bring up ``lo`` in this network namespace. Raises ``OSError``."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, LOOPBACK_UP)
