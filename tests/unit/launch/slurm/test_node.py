"""Addresses and interfaces."""

import pytest

from launch.slurm.node import find_interface, find_own_address


def test_the_own_address_is_that_of_the_way_there() -> None:
    assert find_own_address("127.0.0.5") == "127.0.0.1"
    assert find_own_address("localhost") in ("127.0.0.1", "::1")
    with pytest.raises(OSError):
        find_own_address("no-such-host.invalid")


def test_the_interface_of_an_address() -> None:
    assert find_interface("127.0.0.1") == "lo"
    assert find_interface("192.0.2.1") is None
