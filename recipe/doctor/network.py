"""Checks where the ranks meet: the port, the interface towards rank 0's machine, and this machine's own name."""

from __future__ import annotations

import socket
from typing import List

from recipe.core import console, network
from recipe.doctor.finding import FAILURE, OK, WARNING, Finding, attempt, failure
from recipe.doctor.subject import Subject


def examine(subject: Subject) -> List[Finding]:
    """Check the port, the interface and the host name; little of it matters with one machine."""
    return [*_port(subject), *_interface(subject), *_host_name(subject)]


def _port(subject: Subject) -> List[Finding]:
    asked = subject.asked
    if not asked.is_first_node:
        return []

    def act() -> str:
        network.require_port(asked.master_addr, asked.master_port)
        return f'{asked.master_port} is free' if asked.master_port else 'a free one is chosen'

    return attempt('port', act)


def _interface(subject: Subject) -> List[Finding]:
    try:
        addr = subject.master
    except console.UserError as error:
        return [failure('master address', error)]
    there = sorted(name for _, name in socket.if_nameindex())
    variable = network.INTERFACE_VARIABLES[subject.device]
    given = subject.env.get(variable, '')
    unknown = [name for name in network.interface_names(given) if not any(one.startswith(name) for one in there)]
    if unknown:
        found = f'{variable}={given} names {unknown[0]}, which this machine does not have'
        return [Finding('network interface', FAILURE, found, f'unset it, or give one of {", ".join(there)}')]
    if given:
        return [Finding('network interface', OK, f'{variable}={given}, as the environment says')]
    interface = network.interface_towards(addr)
    if interface is None:
        fix = f'check --master_addr and the routes (ip route get), or set {variable}'
        return [Finding('network interface', FAILURE, f'no route to {addr}', fix)]
    if subject.asked.nnodes > 1 and interface == network.LOOPBACK:
        # Debian's /etc/hosts gives a machine's own name the address 127.0.1.1.
        fix = 'give --master_addr the IPv4 address that the other machines reach machine 0 by'
        return [Finding('network interface', WARNING, f'{addr} is reached by this very machine only', fix)]
    return [Finding('network interface', OK, f'{interface} leads to {addr}')]


def _host_name(subject: Subject) -> List[Finding]:
    name = socket.gethostname()
    try:
        addr = network.resolve(name)
    except console.UserError:
        found = f'{name} resolves to no IPv4 address, which collectives may ask for'
        return [Finding('host name', WARNING, found, f'add {name} with its address to /etc/hosts')]
    return [Finding('host name', OK, f'{name} is {addr}')]
