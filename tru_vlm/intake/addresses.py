"""The module says which network addresses may be fetched from; it opens no connection and resolves no name."""

from __future__ import annotations

import ipaddress

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_NETWORKS = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]


def _networks(*texts: str) -> _NETWORKS:
    return tuple(ipaddress.ip_network(text) for text in texts)


# IANA special-purpose registries (RFC 6890 and its updates), written out: what `is_global` means has changed between
# Python versions.
_NEVER = _networks(
    "0.0.0.0/8",  # this network
    "169.254.0.0/16",  # link-local: cloud metadata services
    "192.0.0.0/24",  # IETF protocol assignments
    "192.0.2.0/24",  # documentation
    "192.88.99.0/24",  # 6to4 relay anycast
    "198.18.0.0/15",  # benchmarking
    "198.51.100.0/24",  # documentation
    "203.0.113.0/24",  # documentation
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
    "168.63.129.16/32",  # Azure's host agent: a global address by number, not by meaning
    "2001::/23",  # IETF protocol assignments, Teredo among them
    "2001:db8::/32",  # documentation
    "2002::/16",  # 6to4: carries an IPv4 address
    "3fff::/20",  # documentation
    "fd00:ec2::254/128",  # AWS metadata service
)
_PRIVATE = _networks(
    "10.0.0.0/8",
    "100.64.0.0/10",  # shared address space of carriers
    "127.0.0.0/8",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "::1/128",
    "fc00::/7",
)
# The only global unicast space; v4-mapped (::ffff:0:0/96), v4-compatible (::/96), NAT64 (64:ff9b::/96 and
# 64:ff9b:1::/48), link-local, site-local and multicast all lie outside.
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")


def is_address(text: str) -> bool:
    """Whether this is a numeric address in the form that a resolver gives: no short, octal or hexadecimal one."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_allowed_address(text: str, *, allow_private: bool) -> bool:
    """Whether a resolved address may be connected to.

    Args:
        text: a numeric address, as the resolver gave it.
        allow_private: also loopback, private and carrier addresses; never link-local, multicast or reserved ones.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if getattr(address, "scope_id", None) is not None or _is_in(address, _NEVER):
        return False
    if _is_in(address, _PRIVATE):
        return allow_private
    return isinstance(address, ipaddress.IPv4Address) or address in _GLOBAL_IPV6


def _is_in(address: IPAddress, networks: _NETWORKS) -> bool:
    return any(address.version == network.version and address in network for network in networks)
