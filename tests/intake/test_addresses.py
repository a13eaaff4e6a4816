"""Every class of address that is not the public internet is refused."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tru_vlm.intake.addresses import is_allowed_address

PRIVATE = ["127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"]
PRIVATE += ["100.127.255.255", "::1", "fc00::1", "fd12:3456::1"]
NEVER = [
    *("0.0.0.0", "0.1.2.3", "169.254.169.254", "192.0.0.1", "192.0.2.1", "192.88.99.1", "198.18.0.1"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "168.63.129.16"),
    *("::", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1"),
    *("64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::1", "3fff::1"),
    *("fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1", "fd00:ec2::254", "2606:4700::1%eth0"),
    *("", "localhost", "127.1", "0x7f000001", "2130706433", "1.2.3.4:80", "[::1]"),
]
PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.216.34", "172.15.0.1", "172.32.0.1", "100.63.0.1", "100.128.0.1"]
PUBLIC += ["2606:4700:4700::1111", "2a00:1450:4001:830::200e"]


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_allowed(text: str) -> None:
    assert is_allowed_address(text, allow_private=False)


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses_only_by_setting(text: str) -> None:
    assert not is_allowed_address(text, allow_private=False)
    assert is_allowed_address(text, allow_private=True)


@pytest.mark.parametrize("text", NEVER)
def test_never_allowed(text: str) -> None:
    assert not is_allowed_address(text, allow_private=False)
    assert not is_allowed_address(text, allow_private=True)


@given(st.ip_addresses())
def test_never_wider_than_pythons_own_list(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if is_allowed_address(str(address), allow_private=False):
        assert address.is_global
        assert not address.is_multicast
