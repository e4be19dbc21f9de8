"""Ports and addresses at which the ranks meet. Standard library only."""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from pathlib import Path
from typing import List, Optional, Tuple

from recipe.core import console

LOCAL = '127.0.0.1'
LOOPBACK = 'lo'
# Variables that name the network interface for the collectives of each device.
INTERFACE_VARIABLES = {'npu': 'HCCL_SOCKET_IFNAME', 'cuda': 'NCCL_SOCKET_IFNAME', 'cpu': 'GLOO_SOCKET_IFNAME'}
_SIOCGIFADDR = 0x8915  # Linux: ask an interface for its IPv4 address
_RTF_UP = 1  # linux/route.h


def free_port() -> int:
    """A TCP port of this machine on which nothing listens."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(('', 0))
        port: int = probe.getsockname()[1]
        return port


def require_port(addr: Optional[str], port: Optional[int]) -> None:
    """Check that rank 0, if it is on this machine, can listen at the given address and port.

    Args:
        addr: Value of ``--master_addr``; None for this machine alone.
        port: Value of ``--master_port``; None for a free one.

    Raises:
        console.UserError: The port is in use or reserved, or the address is unknown or another machine's.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As torch's store does; a port on which something listens is still refused.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((resolve(addr) if addr else '', port or 0))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise console.UserError(
                    f'--master_addr={addr} is not an address of this machine, which is number 0',
                    'give its own address, or start here with the --node_rank that this machine has',
                ) from None
            why = {errno.EADDRINUSE: 'in use', errno.EACCES: 'reserved for root'}.get(error.errno or 0, error.strerror)
            raise console.UserError(
                f'--master_port={port} is {why}',
                'give another one' + (', or leave it out: a free one is chosen' if addr is None else ''),
            ) from None


def resolve(host: str) -> str:
    """The IPv4 address of a host.

    Raises:
        console.UserError: The name is unknown.
    """
    try:
        return str(socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        raise console.UserError(
            f'--master_addr={host} cannot be resolved ({error})',
            'give an IPv4 address or a name that this machine knows',
        ) from None


def interface_towards(addr: str) -> Optional[str]:
    """The network interface through which this machine reaches another one, such as ``eth0``.

    Without it, collectives take the first interface that the host name resolves to, which is often the wrong one.

    Args:
        addr: IPv4 address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((addr, 9))  # sends nothing; only looks up the route
        except OSError:
            return None
        own = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack('256s', name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == own:
                return name
    # The kernel does not give an interface's second address for its name.
    return route_interface(addr, Path('/proc/net/route'))


def route_interface(addr: str, table: Path) -> Optional[str]:
    """The interface of the most specific route to an address.

    Args:
        addr: IPv4 address.
        table: The kernel's routes, as in ``/proc/net/route``: addresses are hexadecimal, least significant byte first.
    """
    wanted = struct.unpack('<I', socket.inet_aton(addr))[0]
    try:
        rows = [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return None
    best: Optional[Tuple[int, int, str]] = None
    for row in rows:
        name, target, flags, metric, mask = row[0], int(row[1], 16), int(row[3], 16), int(row[6]), int(row[7], 16)
        if flags & _RTF_UP and wanted & mask == target:
            # A longer prefix has more bits; among equals the lower metric counts.
            best = max(filter(None, (best, (bin(mask).count('1'), -metric, name))))
    return best[2] if best else None


def interface_names(given: str) -> List[str]:
    """Interfaces selected by a variable such as NCCL_SOCKET_IFNAME: names, or first letters of names.

    Args:
        given: ``eth0,eth1`` and ``=eth0`` name interfaces; a value that begins with ``^`` excludes some and names none.
    """
    if given.startswith('^'):
        return []
    return [name.strip() for name in given.lstrip('=').split(',') if name.strip()]
