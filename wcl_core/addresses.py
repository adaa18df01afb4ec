"""Addresses of this machine, by which runs of several machines reach each other."""

from __future__ import annotations

import ipaddress
import socket

import psutil


def resolve(name: str) -> tuple[str, str]:
    """Return an address of this machine and its interface.

    Args:
        name: the address, or the interface, of which the first address is taken; IPv4 comes first.

    Raises:
        ValueError: this machine has no such address or interface.
    """
    interfaces = {
        interface: sorted((each for each in found if each.family in _FAMILIES), key=lambda each: each.family)
        for interface, found in psutil.net_if_addrs().items()
    }
    if interfaces.get(name):
        return interfaces[name][0].address, name
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        expected = ", ".join(sorted(interfaces))
        raise ValueError(f"{name!r} is no address and no interface of this machine, which has {expected}") from None
    if address.is_unspecified or address.is_multicast:
        raise ValueError(f"{name} is no address of one machine")
    try:
        bound(name).close()
    except OSError as error:
        raise ValueError(f"{name} is no address of this machine ({error.strerror})") from error
    for interface, addresses in interfaces.items():
        if any(name == each.address or (address.is_loopback and each.address == "127.0.0.1") for each in addresses):
            return name, interface
    raise ValueError(f"{name} is of no interface of this machine")


_FAMILIES = (socket.AF_INET, socket.AF_INET6)


def bound(address: str, port: int = 0) -> socket.socket:
    """Return a socket that is bound to an address and a port of this machine, by default to a free port.

    The worker reserves the port for its run: processes of one account may bind it beside each other, and connections go
    to the one that listens.
    """
    result = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    try:
        result.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        result.bind((address, port))
    except OSError:
        result.close()
        raise
    return result
